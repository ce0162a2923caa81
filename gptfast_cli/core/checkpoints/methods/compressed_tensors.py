"""compressed-tensors, of llm-compressor and vLLM: the dtype of what is stored tells the format of a module.

    pack-quantized        weight_packed     int32   [out_features, in_features b / 32], codes - 2^(b - 1)
                          weight_zero_point int32   [out_features b / 32, n_groups], likewise; none if symmetric
                          weight_g_idx      int32   [in_features], group of each column; may be missing
                          weight_shape      int64   [2]
    int-quantized         weight            int8    [out_features, in_features]
    float-quantized       weight            float8  [out_features, in_features]
    mxfp8-quantized       the same; scales are uint8, e8m0
    nvfp4-pack-quantized  weight_packed     uint8   [out_features, in_features / 2]; scales are e4m3
                          weight_global_scale  float32 [1], by which the scales are divided
    mxfp4-pack-quantized  weight_packed     uint8   the same; scales are uint8, e8m0

    weight_scale  [1], [out_features, 1], [out_features, n_groups], or one for each block
    weight[o, i] = scale * (code - zero point)

Source: compressed-tensors 0.20 `compressors/`, `quantization/lifecycle/forward_helpers.py`.
"""

import torch
from torch import Tensor

from gptfast_cli.core.checkpoints.methods import WEIGHT, StoredModule, text
from gptfast_cli.core.checkpoints.methods._packing import (
    EXPONENTS,
    FLOAT8,
    FLOATS,
    act_order,
    bit_stream,
    exponents,
    float4_weight,
    float8_weight,
    group_scales,
    grouped_codes,
    int8_weight,
    integers,
    n_words,
    ordered,
)
from gptfast_cli.core.schemes import Weight

_PACKED, _SHAPE, _SCALE, _ZERO = "weight_packed", "weight_shape", "weight_scale", "weight_zero_point"
_GLOBAL_SCALE, _G_IDX = "weight_global_scale", "weight_g_idx"
_BITS = (2, 4, 8)
_UNREAD = ("marlin-24", "sparse-bitmask", "sparse-24-bitmask", "mxfp6-pack-quantized")


class CompressedTensors:
    """Integers of 2, 4 and 8 bits, and floats of 4 and 8; a module may have a format of its own."""

    tensors: tuple[str, ...] = (WEIGHT, _PACKED, _SHAPE, _SCALE, _ZERO, _GLOBAL_SCALE, _G_IDX)

    def weight(self, module: StoredModule) -> Weight:
        layout = _declared_layout(module)
        if _PACKED in module or (WEIGHT not in module and "pack" in layout):
            return _integers(module) if module.dtype(_PACKED) == torch.int32 else _floats(module)
        if module.dtype(WEIGHT) in FLOAT8:
            return float8_weight(module, _SCALE)
        return int8_weight(module, _SCALE, _ZERO)


def _declared_layout(module: StoredModule) -> str:
    """The format that is declared for all modules. Raises UsageError for one that is not read."""
    declared = module.declared.declared
    layout = text(declared, "format", "dense")
    if layout in _UNREAD:
        raise module.unsupported(f"the format {layout} of compressed-tensors")
    for key, inner in (("sparsity_config", "format"), ("transform_config", "config_groups")):
        found = declared.values.get(key) or {}
        if found.get(inner) not in (None, "dense", {}):
            raise module.unsupported(f"{key} of compressed-tensors")
    return layout


def _integers(module: StoredModule) -> Weight:
    out_features, in_features = module.shape
    bits = module.format.bits
    if bits not in _BITS:  # 3, 5, 6 and 7 bits have changed their layout
        raise module.unsupported(f"pack-quantized of {bits} bits")
    if _SHAPE in module:
        stored = tuple(module.small(_SHAPE, (2,), torch.int64, torch.int32).tolist())
        if stored != module.shape:
            raise module.corrupt(_SHAPE, f"is {list(stored)}, and config.json makes it {list(module.shape)}")
    words = module.tensor(_PACKED, (out_features, n_words(in_features, bits)), torch.int32)
    scales = group_scales(module, _SCALE, *FLOATS)
    order = act_order(module, _G_IDX)
    codes = ordered(bit_stream(words, bits)[:, :in_features], order)
    zeros = _zero_points(module, scales.shape[1], bits) if _ZERO in module else None
    values = integers(-(1 << bits - 1), bits) if zeros is None else integers(0, bits)
    return grouped_codes(module, codes, values, scales=scales, zeros=zeros, order=order)


def _zero_points(module: StoredModule, n_groups: int, bits: int) -> Tensor:
    """Zero points as codes, [out_features, n_groups]; older files have them as signed bytes."""
    out_features = module.shape[0]
    if module.dtype(_ZERO) == torch.int8:
        return module.tensor(_ZERO, (out_features, n_groups), torch.int8).view(torch.uint8) + (1 << bits - 1)
    words = module.tensor(_ZERO, (n_words(out_features, bits), n_groups), torch.int32)
    return bit_stream(words.t(), bits)[:, :out_features].t().contiguous()


def _floats(module: StoredModule) -> Weight:
    scales = module.tensor(_SCALE, (module.shape[0], module.n_groups), torch.float8_e4m3fn, *EXPONENTS)
    if scales.dtype in EXPONENTS:
        return float4_weight(module, _PACKED, exponents(scales))
    # a float64 reciprocal gives the same float32 as the division by a float32
    return float4_weight(module, _PACKED, scales, 1 / module.scalar(_GLOBAL_SCALE, torch.float32).double())


PLUG = CompressedTensors()
