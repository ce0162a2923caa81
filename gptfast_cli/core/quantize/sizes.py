"""Bytes of a quantized model by part, and the memory that running it needs."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from gptfast_cli.core.checkpoints.checkpoint import Checkpoint
from gptfast_cli.core.checkpoints.writer import Contents
from gptfast_cli.core.config import ModelConfig
from gptfast_cli.core.models.weights import weight_shapes
from gptfast_cli.core.quantize.allocation import AllocationOptions, Storage
from gptfast_cli.core.schemes.plain import NAME as PLAIN


@dataclass(frozen=True, slots=True)
class PartSize:
    """Size of the embedding, the layers' matrices, the head, or the norms and biases, and their planned scheme."""

    part: str
    scheme: str
    n_params: int
    n_bytes_before: int
    n_bytes: int


def part_sizes(checkpoint: Checkpoint, contents: Contents, storages: Mapping[str, Storage]) -> tuple[PartSize, ...]:
    """Sizes of a model's parts before and after quantization, in the order in which a step reads them.

    The layers of each scheme are a part of their own.
    """
    sizes: dict[tuple[str, str], PartSize] = {}
    for name, shape in weight_shapes(checkpoint.config).items():
        part = _part(name, shape)
        n_params, n_bytes_before = 0, 0
        for piece in checkpoint.tensors(name):
            n_params += piece.tensor.numel()
            n_bytes_before += piece.tensor.nbytes
        scheme = str(storages[name])
        so_far = sizes.get((part, scheme), PartSize(part, scheme, 0, 0, 0))
        sizes[part, scheme] = PartSize(
            part,
            scheme,
            so_far.n_params + n_params,
            so_far.n_bytes_before + n_bytes_before,
            so_far.n_bytes + contents.weights[name].n_bytes,
        )
    return tuple(sizes.values())


def _part(name: str, shape: tuple[int, ...]) -> str:
    if len(shape) == 1:
        return "norms and biases"
    return name if name in ("embedding", "head") else "layers"


_BFLOAT16_BYTES = 2


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """Bytes of the weights in bfloat16 and in each scheme, and bytes of the KV cache for each token of context.

    window:                   tokens in the widest window of a layer; 0 if no layer has one
    kv_bytes_per_later_token: for each token after as many
    """

    weight_bytes: Mapping[str, int]
    kv_bytes_per_token: int
    window: int
    kv_bytes_per_later_token: int


def memory_need(config: ModelConfig, schemes: Iterable[str] = ("int8", "int4")) -> MemoryNeed:
    """Memory of a model of this shape, in bfloat16 and quantized as by `gptfast quantize --mode`."""
    forms = {"bfloat16": PLAIN, **{scheme: scheme for scheme in schemes}}
    weight_bytes = {form: _weight_bytes(config, mode) for form, mode in forms.items()}
    window = config.widest_window
    each, later = (config.kv_bytes_per_token(_BFLOAT16_BYTES, n_before) for n_before in (0, window))
    return MemoryNeed(weight_bytes, each, window, later)


def _weight_bytes(config: ModelConfig, mode: str) -> int:
    storages = AllocationOptions(mode).allocation(config).of(config)
    return sum(storages[name].n_bytes(shape, _BFLOAT16_BYTES) for name, shape in weight_shapes(config).items())
