"""Which backend computes a model: the CPU engine where it can, else PyTorch's own operations."""

import ctypes
from typing import Final

import torch

from gptfast_cli.core.config import ModelConfig
from gptfast_cli.core.device import dtype_name
from gptfast_cli.core.errors import GptFastError, UsageError
from gptfast_cli.core.events import Job, Note, Progress
from gptfast_cli.core.kernels.cpu.compiler import NoCompilerError, compile_library, is_whole, library_file
from gptfast_cli.core.kernels.cpu.library import open_library
from gptfast_cli.core.model.native import can_run
from gptfast_cli.core.private_folder import private_folder
from gptfast_cli.core.settings import Settings
from gptfast_cli.core.stopwatch import Stopwatch

CPU, REFERENCE = "cpu", "reference"
BACKENDS: Final = (CPU, REFERENCE)

_INSTALL = "Install g++ (Debian: apt-get install g++), or leave out --backend."


def open_engine(
    backend: str | None, config: ModelConfig, dtype: torch.dtype, device: torch.device, settings: Settings
) -> Job[ctypes.CDLL | None]:
    """The library of the CPU engine, compiled first where this machine has none yet; None for the reference.

    With no backend named the engine is taken where it can run the model and a compiler is there. Raises UsageError for
    a name that is no backend and for `cpu` where the engine lacks what the model needs, GptFastError where it cannot be
    had.
    """
    if backend not in (None, *BACKENDS):
        raise UsageError(f"There is no backend called {backend!r}.", f"Backends: {', '.join(BACKENDS)}.")
    if backend == REFERENCE:
        return None
    if not can_run(config, dtype, device):
        if backend == CPU:
            raise UsageError(
                f"The CPU engine does not run heads of {config.head_dim} in {dtype_name(dtype)} on {device}.",
                "It runs float32 and bfloat16 on a CPU, heads of whole vectors up to 256; leave out --backend.",
            )
        return None
    try:
        return (yield from _compiled(settings))
    except NoCompilerError as error:
        if backend == CPU:
            raise GptFastError(error.message, _INSTALL) from error
        yield Note(f"{error.message} Running on PyTorch's own operations, several times as slow.")
        return None


def _compiled(settings: Settings) -> Job[ctypes.CDLL]:
    file = library_file(settings.kernel_cache)
    if not is_whole(file):
        folder, remark = private_folder(settings.kernel_cache)
        if remark:
            yield Note(remark)
        file = library_file(folder)
    if not is_whole(file):
        watch = Stopwatch(torch.device("cpu"))
        yield Progress("compile the CPU engine", 0, None, "tokens")
        with watch:
            compile_library(file)
        yield Note(f"The CPU engine was compiled for this machine, once, in {watch.seconds:.0f} s.")
    return open_library(file)
