"""Bytes of a quantized model by part, as it is stored or declared, and the memory that running it needs."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from gptfast_cli.core.checkpoints.checkpoint import Checkpoint
from gptfast_cli.core.checkpoints.foreign import part_rows
from gptfast_cli.core.checkpoints.quantization_config import QuantizationConfig, WeightFormat
from gptfast_cli.core.checkpoints.writer import Contents
from gptfast_cli.core.config import ModelConfig
from gptfast_cli.core.errors import UsageError
from gptfast_cli.core.families import families
from gptfast_cli.core.models.weights import weight_shapes
from gptfast_cli.core.quantize.allocation import AllocationOptions, Storage
from gptfast_cli.core.schemes import Weight
from gptfast_cli.core.schemes.grouped import PLANES, grouped
from gptfast_cli.core.schemes.plain import NAME as PLAIN
from gptfast_cli.core.schemes.plain import plain
from gptfast_cli.core.schemes.stacked import stack


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


def declared_outline(config: ModelConfig, declared: QuantizationConfig, dtype: torch.dtype) -> dict[str, Weight]:
    """Every weight of a model that another program has quantized, by name, on the meta device.

    dtype: of plain weights
    Raises UsageError where the bits are not declared, or are of no scheme.
    """
    form = declared.format
    if form is None or form.bits not in PLANES:
        bits = "with an unknown number of bits" if form is None else f"with {form.bits} bits"
        raise UsageError(
            f"{declared.declared.where}: quantized by {declared.method} {bits}, which is not supported.",
            "Take the original model.",
        )
    sources = families[config.family].sources(config)
    return {
        name: stack(
            [
                _outline((n_rows or shape[0], *shape[1:]), declared.format_of(tensor.removesuffix(".weight")), dtype)
                for tensor, n_rows in zip(
                    sources[name], part_rows(config, name, n_parts=len(sources[name])), strict=True
                )
            ]
        )
        for name, shape in weight_shapes(config).items()
    }


def _outline(shape: tuple[int, ...], form: WeightFormat | None, dtype: torch.dtype) -> Weight:
    if form is None or len(shape) == 1:
        return plain(torch.empty(shape, dtype=dtype, device="meta"))
    n_rows, n_columns = shape
    size = -(-min(form.group_size or n_columns, n_columns) // 8) * 8  # groups end at bytes
    by_group = (n_rows, -(-n_columns // size))
    n_bytes = -(-int(form.group_bits) // 8)  # a zero point takes a byte
    return grouped(
        torch.empty((*by_group, size), dtype=torch.uint8, device="meta"),
        torch.empty(1 << form.bits, device="meta"),
        (n_rows, n_columns),
        scales=torch.empty(by_group, dtype=_SCALES.get(n_bytes, torch.float32), device="meta"),
        zeros=torch.empty(by_group, dtype=torch.uint8, device="meta") if n_bytes == 3 else None,
    )


_SCALES = {1: torch.uint8, 2: torch.float16, 3: torch.float16}
"""Dtype of scales, by the bytes of what a group has."""

_BFLOAT16_BYTES = 2


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """Bytes of the weights in bfloat16 and in each scheme, and bytes of the KV cache for each token of context.

    A model that its makers have quantized has that one scheme.

    window:                   tokens in the widest window of a layer; 0 if no layer has one
    kv_bytes_per_later_token: for each token after as many
    """

    weight_bytes: Mapping[str, int]
    kv_bytes_per_token: int
    window: int
    kv_bytes_per_later_token: int


def memory_need(config: ModelConfig, declared: QuantizationConfig | None = None) -> MemoryNeed:
    """Memory of a model of this shape: as declared, else in bfloat16 and quantized as by `gptfast quantize --mode`."""
    if declared is not None:
        outlines = {str(declared): declared_outline(config, declared, torch.bfloat16)}
    else:
        forms = {"bfloat16": PLAIN, "int8": "int8", "int4": "int4"}
        outlines = {
            form: AllocationOptions(mode).allocation(config).outline(config, torch.bfloat16)
            for form, mode in forms.items()
        }
    weight_bytes = {form: sum(weight.n_bytes for weight in outlines[form].values()) for form in outlines}
    window = config.widest_window
    each, later = (config.kv_bytes_per_token(_BFLOAT16_BYTES, n_before) for n_before in (0, window))
    return MemoryNeed(weight_bytes, each, window, later)
