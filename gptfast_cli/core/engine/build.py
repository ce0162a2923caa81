"""Building a decoder on a device from its weights: choice of the backend, sharding checks, loading."""

import ctypes
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import torch

from gptfast_cli.core.backends import BACKENDS, CPU, REFERENCE
from gptfast_cli.core.backends.base import Backend, phase
from gptfast_cli.core.backends.cpu.compiler import NoCompilerError, compile_library, is_whole, library_file
from gptfast_cli.core.backends.cpu.engine import ComputeOptions
from gptfast_cli.core.backends.cpu.library import open_library
from gptfast_cli.core.backends.reference import Reference
from gptfast_cli.core.config import ModelConfig
from gptfast_cli.core.device import AUTO, pick_kv_dtype
from gptfast_cli.core.errors import GptFastError, UsageError
from gptfast_cli.core.events import Job, Note, Progress
from gptfast_cli.core.files import private_folder
from gptfast_cli.core.memory import available_memory_bytes, check_fits
from gptfast_cli.core.models.decoder import Decoder
from gptfast_cli.core.models.native import NativeModel, unsupported
from gptfast_cli.core.models.process_group import ALONE, ProcessGroup
from gptfast_cli.core.models.sharding import ModelShard, check_divides
from gptfast_cli.core.models.transformer import Transformer
from gptfast_cli.core.models.weights import assemble, weight_blocks, weight_shapes
from gptfast_cli.core.schemes import WHOLE, Block, Weight, forms, schemes
from gptfast_cli.core.schemes.plain import NAME as PLAIN
from gptfast_cli.core.schemes.plain import plain
from gptfast_cli.core.settings import Settings
from gptfast_cli.core.stopwatch import Stopwatch

_ON_TORCH = "Running on PyTorch's own operations, several times as slow."
_INSTALL = "Install g++ (Debian: apt-get install g++), or leave out --backend."


def open_engine(
    backend: str | None,
    config: ModelConfig,
    outline: Mapping[str, Weight],
    dtype: torch.dtype,
    device: torch.device,
    settings: Settings,
) -> Job[ctypes.CDLL | None]:
    """The library of the CPU engine, compiled if it is not cached; None to run on the reference.

    backend:      None: the engine if it supports the model and there is a compiler
    outline:      the weights on the meta device

    Raises UsageError for an unknown backend, and for `cpu` if the engine does not support the model; GptFastError if it
    cannot be compiled.
    """
    if backend not in (None, *BACKENDS):
        raise UsageError(f"There is no backend called {backend!r}.", f"Backends: {', '.join(BACKENDS)}.")
    if backend == REFERENCE:
        return None
    if (lacking := unsupported(config, outline, dtype, device)) is not None:
        message = f"The CPU engine does not run {lacking.what}."
        if backend == CPU:
            raise UsageError(message, lacking.hint)
        if lacking.is_noted:
            yield Note(f"{message} {_ON_TORCH}")
        return None
    try:
        return (yield from _compiled(settings))
    except NoCompilerError as error:
        if backend == CPU:
            raise GptFastError(error.message, _INSTALL) from error
        yield Note(f"{error.message} {_ON_TORCH}")
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


Outline = Callable[[], Mapping[str, Weight]]
"""Returns every weight by its name, on the meta device."""


def check_sharded(config: ModelConfig, outline: Outline, size: int) -> None:
    """Raise UsageError if a model of this shape, with weights like these, cannot be sharded over `size` ranks."""
    if size == 1:
        return
    check_divides(config, size)
    weights = outline()
    kinds = {(name.rpartition(".")[2], forms(weight)): name for name, weight in weights.items()}  # one layer for all
    for name in kinds.values():
        if weights[name].scheme == PLAIN:
            continue
        for rank in range(size):
            block = ModelShard(config, rank, size).block(name)
            if block is not None:
                weights[name].block(block)


FLOAT_ACTIVATIONS = "float"

_FEWER_BYTES = "Take a smaller model, or fewer bits: gptfast quantize --mode int4"


@dataclass(frozen=True, slots=True)
class RuntimeConfig:
    """Device, dtype and backend of a model; None: chosen by the machine and the checkpoint.

    backend:     cpu or reference; None: the CPU engine if it supports the model
    kv_dtype:    of the KV cache: int8, or auto (the compute dtype)
    activations: "float": keep activations in floating point; None: 8-bit where the backend supports it
    max_context: tokens of the longest text; None: as many as the model reads without another RoPE
    verify:      compare the weights with their SHA-256 before reading
    group:       tensor-parallel ranks
    """

    device: str = "auto"
    dtype: str | None = None
    threads: int | None = None
    backend: str | None = None
    activations: str | None = None
    max_context: int | None = None
    verify: bool = False
    kv_dtype: str = AUTO
    group: ProcessGroup = ALONE

    def check(self) -> None:
        """Raise UsageError for an unknown value of `activations`."""
        if self.activations not in (None, FLOAT_ACTIVATIONS):
            raise UsageError(
                f"--activations takes {FLOAT_ACTIVATIONS}, not {self.activations!r}.", "Leave it out for the default."
            )


@dataclass(frozen=True, slots=True)
class ModelSource:
    """The weights of a model to be built.

    read:          returns a weight by its name, or a block of it
    n_bytes:       of all weights as stored
    device, dtype: of computation
    """

    config: ModelConfig
    read: Callable[[str, Block | None], Weight]
    outline: Outline
    n_bytes: int
    device: torch.device
    dtype: torch.dtype


def build(
    source: ModelSource,
    runtime: RuntimeConfig,
    *,
    settings: Settings,
    watch: Stopwatch,
    torch_backend: Backend | None = None,
) -> Job[Decoder]:
    """Build a model, weight by weight; the watch runs while weights are read.

    `torch_backend`: runs it in place of the chosen backend; for tests. Raises what `open_engine` raises, and
    OutOfMemoryError if the weights do not fit into the memory of a CPU.
    """
    runtime.check()
    check_sharded(source.config, source.outline, runtime.group.size)
    kv_dtype = pick_kv_dtype(runtime.kv_dtype, source.dtype)
    chosen = REFERENCE if torch_backend is not None else runtime.backend
    library = yield from open_engine(chosen, source.config, source.outline(), source.dtype, source.device, settings)
    if library is None:
        return (yield from _build_transformer(source, kv_dtype, torch_backend or Reference(), runtime.group, watch))
    _check_memory(source, runtime.group.size)
    floats = runtime.activations == FLOAT_ACTIVATIONS
    options = ComputeOptions(source.dtype, kv_dtype, float_activations=floats)
    native = NativeModel(library, source.config, options, n_threads=torch.get_num_threads(), group=runtime.group)
    for block in weight_blocks(source.config):
        with watch, phase("load"):
            native.take({name: _read(source, name, native.shard, whole=("embedding",)) for name in block})
        yield Progress("load", native.weight_bytes, source.n_bytes // runtime.group.size, "bytes")
    return native


def _check_memory(source: ModelSource, size: int) -> None:
    """Raise OutOfMemoryError if the engine's copies of the weights do not fit; an untied embedding stays mapped."""
    available = available_memory_bytes()
    if available is None or source.n_bytes // size <= available:
        return
    in_file = 0 if source.config.tied_embeddings else source.read("embedding", None).n_bytes
    check_fits((source.n_bytes - in_file) // size, "The model's weights", _FEWER_BYTES, available)


def _build_transformer(
    source: ModelSource, kv_dtype: torch.dtype, backend: Backend, group: ProcessGroup, watch: Stopwatch
) -> Job[Transformer]:
    weights: dict[str, Weight] = {}
    shard = ModelShard(source.config, group.rank, group.size)
    done = 0
    for name in weight_shapes(source.config):
        with watch, phase("load"):
            stored = _read(source, name, shard)
            weights[name] = schemes[stored.scheme].to(stored, source.device, source.dtype)
        done += stored.n_bytes
        yield Progress("load", done, source.n_bytes // group.size, "bytes")
    assembled = assemble(source.config, weights.__getitem__)
    return Transformer(source.config, assembled, backend, source.dtype, kv_dtype=kv_dtype, group=group)


def _read(source: ModelSource, name: str, shard: ModelShard, whole: Collection[str] = ()) -> Weight:
    """A rank's shard of a weight; zeros for biases that only the first rank adds."""
    if shard.size == 1:
        return source.read(name, None)
    block = WHOLE if name in whole else shard.block(name)
    return plain(torch.zeros(weight_shapes(source.config)[name])) if block is None else source.read(name, block)
