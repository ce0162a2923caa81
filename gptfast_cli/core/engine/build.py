"""From weights to a decoder on a device: the backend is chosen, shards are checked, the model is built."""

import ctypes
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Final

import torch

from gptfast_cli.core.backends import CPU, REFERENCE, Backend, phase
from gptfast_cli.core.backends.cpu.compiler import (
    NoCompilerError,
    compile_library,
    is_whole,
    library_file,
)
from gptfast_cli.core.backends.cpu.engine import ComputeOptions
from gptfast_cli.core.backends.cpu.library import open_library
from gptfast_cli.core.backends.reference import Reference
from gptfast_cli.core.config import ModelConfig
from gptfast_cli.core.device import AUTO, available_memory_bytes, check_fits, pick_kv_dtype
from gptfast_cli.core.errors import GptFastError, UsageError
from gptfast_cli.core.events import Job, Note, Progress
from gptfast_cli.core.files import private_folder
from gptfast_cli.core.models.decoder import Decoder
from gptfast_cli.core.models.native import NativeModel, unsupported
from gptfast_cli.core.models.process_group import ALONE, ProcessGroup
from gptfast_cli.core.models.sharding import ModelShard, check_divides
from gptfast_cli.core.models.transformer import Transformer
from gptfast_cli.core.models.weights import assemble, weight_blocks, weight_shapes
from gptfast_cli.core.quantize.allocation import Storage
from gptfast_cli.core.schemes import (
    WHOLE,
    Block,
    Weight,
    schemes,
)
from gptfast_cli.core.schemes.plain import NAME as PLAIN
from gptfast_cli.core.schemes.plain import plain
from gptfast_cli.core.settings import Settings
from gptfast_cli.core.stopwatch import Stopwatch

BACKENDS: Final = (CPU, REFERENCE)

_ON_TORCH = "Running on PyTorch's own operations, several times as slow."
_INSTALL = "Install g++ (Debian: apt-get install g++), or leave out --backend."


def open_engine(
    backend: str | None,
    config: ModelConfig,
    stored_in: Collection[str],
    dtype: torch.dtype,
    device: torch.device,
    settings: Settings,
) -> Job[ctypes.CDLL | None]:
    """The library of the CPU engine, compiled first if this machine has none yet; None to run on the reference.

    backend:   None takes the engine if it supports the model and there is a compiler
    stored_in: the schemes of the weights

    Raises UsageError for an unknown backend, and for `cpu` if the engine does not support the model; GptFastError if it
    cannot be compiled.
    """
    if backend not in (None, *BACKENDS):
        raise UsageError(f"There is no backend called {backend!r}.", f"Backends: {', '.join(BACKENDS)}.")
    if backend == REFERENCE:
        return None
    if (lacking := unsupported(config, stored_in, dtype, device)) is not None:
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


Storages = Callable[[], Mapping[str, Storage]]
"""Tells the storage of every weight by its name."""


def check_sharded(config: ModelConfig, storages: Storages, size: int) -> None:
    """Raise UsageError if a model of this shape and storage cannot be sharded over `size` ranks."""
    if size == 1:
        return
    check_divides(config, size)
    shapes = weight_shapes(config)
    kinds = {(name.rpartition(".")[2], storage): name for name, storage in storages().items()}  # one layer for all
    for (_, storage), name in kinds.items():
        if storage.scheme == PLAIN:
            continue
        for rank in range(size):
            block = ModelShard(config, rank, size).block(name)
            if block is not None:
                storage.outline(shapes[name]).block(block)


FLOAT_ACTIVATIONS = "float"

_FEWER_BYTES = "Take a smaller model, or fewer bits: gptfast quantize --mode int4"


@dataclass(frozen=True, slots=True)
class RuntimeConfig:
    """Where and in what a model is to run; None leaves it to the machine and the checkpoint.

    backend:     cpu or reference; None takes the engine of the CPU where it can run the model
    kv_dtype:    int8 keeps keys and values in a byte each; auto in the dtype that computes
    activations: "float" lets products with quantised weights take float inputs; else the backend may round these
    verify:      compare the weights with their SHA-256 before they are read
    group:    the ranks that each hold a part of the model
    """

    device: str = "auto"
    dtype: str | None = None
    threads: int | None = None
    backend: str | None = None
    activations: str | None = None
    verify: bool = False
    kv_dtype: str = AUTO
    group: ProcessGroup = ALONE

    def check(self) -> None:
        """Raise UsageError for activations that are none."""
        if self.activations not in (None, FLOAT_ACTIVATIONS):
            raise UsageError(
                f"--activations takes {FLOAT_ACTIVATIONS}, not {self.activations!r}.", "Leave it out for the fast way."
            )


@dataclass(frozen=True, slots=True)
class ModelSource:
    """What a model is made of.

    read:     gives a weight by its name, or a block of it; n_bytes is what all of them take
    storages: tells how they are stored
    device:   that it is to be on; dtype: in which it is to compute
    """

    config: ModelConfig
    read: Callable[[str, Block | None], Weight]
    storages: Storages
    n_bytes: int
    device: torch.device
    dtype: torch.dtype


def build(
    parts: ModelSource,
    runtime: RuntimeConfig,
    *,
    settings: Settings,
    watch: Stopwatch,
    torch_backend: Backend | None = None,
) -> Job[Decoder]:
    """Put a model together, weight by weight; the watch runs while weights are read.

    `torch_backend` computes it where the placing does not ask for another, and is asked for by tests alone. Raises
    UsageError and GptFastError as `open_engine` does, OutOfMemoryError if a CPU's memory cannot hold the weights.
    """
    runtime.check()
    check_sharded(parts.config, parts.storages, runtime.group.size)
    kv_dtype = pick_kv_dtype(runtime.kv_dtype, parts.dtype)
    chosen = REFERENCE if torch_backend is not None else runtime.backend
    stored_in = {storage.scheme for storage in parts.storages().values()}
    library = yield from open_engine(chosen, parts.config, stored_in, parts.dtype, parts.device, settings)
    if library is None:
        return (yield from _on_torch(parts, kv_dtype, torch_backend or Reference(), runtime.group, watch))
    _check_memory(parts, runtime.group.size)
    floats = runtime.activations == FLOAT_ACTIVATIONS
    computing = ComputeOptions(parts.dtype, kv_dtype, float_activations=floats)
    native = NativeModel(library, parts.config, computing, n_threads=torch.get_num_threads(), group=runtime.group)
    for block in weight_blocks(parts.config):
        with watch, phase("load"):
            native.take({name: _read(parts, name, native.shard, whole=("embedding",)) for name in block})
        yield Progress("load", native.weight_bytes, parts.n_bytes // runtime.group.size, "bytes")
    return native


def _check_memory(parts: ModelSource, size: int) -> None:
    """Raise OutOfMemoryError if the engine's copies of the weights do not fit; an embedding stays in its file."""
    available = available_memory_bytes()
    if available is None or parts.n_bytes // size <= available:
        return
    in_file = 0 if parts.config.tied_embeddings else parts.read("embedding", None).n_bytes
    check_fits((parts.n_bytes - in_file) // size, "The model's weights", _FEWER_BYTES, available)


def _on_torch(
    parts: ModelSource, kv_dtype: torch.dtype, backend: Backend, group: ProcessGroup, watch: Stopwatch
) -> Job[Transformer]:
    weights: dict[str, Weight] = {}
    shard = ModelShard(parts.config, group.rank, group.size)
    done = 0
    for name in weight_shapes(parts.config):
        with watch, phase("load"):
            stored = _read(parts, name, shard)
            weights[name] = schemes[stored.scheme].to(stored, parts.device, parts.dtype)
        done += stored.n_bytes
        yield Progress("load", done, parts.n_bytes // group.size, "bytes")
    made = assemble(parts.config, weights.__getitem__)
    return Transformer(parts.config, made, backend, parts.dtype, kv_dtype=kv_dtype, group=group)


def _read(parts: ModelSource, name: str, shard: ModelShard, whole: Collection[str] = ()) -> Weight:
    """A rank's part of a weight; zeros where the first rank has it alone."""
    if shard.size == 1:
        return parts.read(name, None)
    block = WHOLE if name in whole else shard.block(name)
    return plain(torch.zeros(weight_shapes(parts.config)[name])) if block is None else parts.read(name, block)
