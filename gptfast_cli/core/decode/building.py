"""A model put together from its weights, wherever they come from, on the backend that is to compute it."""

from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch

from gptfast_cli.core.config import ModelConfig
from gptfast_cli.core.decode.backend import REFERENCE, open_engine
from gptfast_cli.core.decode.dealing import Storages, check_dealt
from gptfast_cli.core.device import AUTO, pick_kv_dtype
from gptfast_cli.core.errors import UsageError
from gptfast_cli.core.events import Job, Progress
from gptfast_cli.core.formats import WHOLE, Block, Weight, schemes
from gptfast_cli.core.formats.plain import plain
from gptfast_cli.core.kernels import Backend
from gptfast_cli.core.kernels.cpu.engine import Computing
from gptfast_cli.core.kernels.phases import phase
from gptfast_cli.core.kernels.reference import Reference
from gptfast_cli.core.memory import available_memory_bytes, check_fits
from gptfast_cli.core.model.collective import ALONE, Collective
from gptfast_cli.core.model.decoder import Decoder
from gptfast_cli.core.model.native import NativeModel
from gptfast_cli.core.model.share import Share
from gptfast_cli.core.model.transformer import Transformer
from gptfast_cli.core.model.weights import assemble, weight_blocks, weight_shapes
from gptfast_cli.core.settings import Settings
from gptfast_cli.core.stopwatch import Stopwatch

FLOAT_ACTIVATIONS = "float"

_FEWER_BYTES = "Take a smaller model, or fewer bits: gptfast quantize --mode int4"


@dataclass(frozen=True, slots=True)
class Placing:
    """Where and in what a model is to run; None leaves it to the machine and the checkpoint.

    backend:     cpu or reference; None takes the engine of the CPU where it can run the model
    kv_dtype:    int8 keeps keys and values in a byte each; auto in the dtype that computes
    activations: "float" lets products with quantised weights take float inputs; else the backend may round these
    verify:      compare the weights with their SHA-256 before they are read
    together:    the ranks that each hold a part of the model
    """

    device: str = "auto"
    dtype: str | None = None
    threads: int | None = None
    backend: str | None = None
    activations: str | None = None
    verify: bool = False
    kv_dtype: str = AUTO
    together: Collective = ALONE

    def check(self) -> None:
        """Raise UsageError for activations that are none."""
        if self.activations not in (None, FLOAT_ACTIVATIONS):
            raise UsageError(
                f"--activations takes {FLOAT_ACTIVATIONS}, not {self.activations!r}.", "Leave it out for the fast way."
            )


@dataclass(frozen=True, slots=True)
class Parts:
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
    parts: Parts,
    placing: Placing,
    *,
    settings: Settings,
    watch: Stopwatch,
    torch_backend: Backend | None = None,
) -> Job[Decoder]:
    """Put a model together, weight by weight; the watch runs while weights are read.

    `torch_backend` computes it where the placing does not ask for another, and is asked for by tests alone. Raises
    UsageError and GptFastError as `open_engine` does, OutOfMemoryError where a CPU's memory cannot hold the weights.
    """
    placing.check()
    check_dealt(parts.config, parts.storages, placing.together.size)
    kv_dtype = pick_kv_dtype(placing.kv_dtype, parts.dtype)
    chosen = REFERENCE if torch_backend is not None else placing.backend
    library = yield from open_engine(chosen, parts.config, parts.dtype, parts.device, settings)
    if library is None:
        return (yield from _on_torch(parts, kv_dtype, torch_backend or Reference(), placing.together, watch))
    _check_memory(parts, placing.together.size)
    floats = placing.activations == FLOAT_ACTIVATIONS
    computing = Computing(parts.dtype, kv_dtype, float_activations=floats)
    native = NativeModel(library, parts.config, computing, n_threads=torch.get_num_threads(), together=placing.together)
    for block in weight_blocks(parts.config):
        with watch, phase("load"):
            native.take({name: _read(parts, name, native.share, whole=("embedding",)) for name in block})
        yield Progress("load", native.weight_bytes, parts.n_bytes // placing.together.size, "bytes")
    return native


def _check_memory(parts: Parts, size: int) -> None:
    """Raise OutOfMemoryError where the engine's copies of the weights do not fit; an embedding stays in its file."""
    available = available_memory_bytes()
    if available is None or parts.n_bytes // size <= available:
        return
    in_file = 0 if parts.config.tied_embeddings else parts.read("embedding", None).n_bytes
    check_fits((parts.n_bytes - in_file) // size, "The model's weights", _FEWER_BYTES, available)


def _on_torch(
    parts: Parts, kv_dtype: torch.dtype, backend: Backend, together: Collective, watch: Stopwatch
) -> Job[Transformer]:
    weights: dict[str, Weight] = {}
    share = Share(parts.config, together.rank, together.size)
    done = 0
    for name in weight_shapes(parts.config):
        with watch, phase("load"):
            stored = _read(parts, name, share)
            weights[name] = schemes[stored.scheme].to(stored, parts.device, parts.dtype)
        done += stored.n_bytes
        yield Progress("load", done, parts.n_bytes // together.size, "bytes")
    made = assemble(parts.config, weights.__getitem__)
    return Transformer(parts.config, made, backend, parts.dtype, kv_dtype=kv_dtype, together=together)


def _read(parts: Parts, name: str, share: Share, whole: Collection[str] = ()) -> Weight:
    """A rank's part of a weight; zeros where the first rank has it alone."""
    if share.size == 1:
        return parts.read(name, None)
    block = WHOLE if name in whole else share.block(name)
    return plain(torch.zeros(weight_shapes(parts.config)[name])) if block is None else parts.read(name, block)
