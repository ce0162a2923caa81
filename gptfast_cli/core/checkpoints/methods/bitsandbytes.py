"""bitsandbytes: nf4 and fp4 in blocks of the flattened matrix, and int8 by rows.

    nf4, fp4  weight                      uint8    [out_features in_features / 2, 1], the first of two codes highest
              weight.absmax               float32  [n_blocks]; uint8 if it is quantized too
              weight.quant_map            float32  [16], the value of each code
              weight.quant_state.bitsandbytes__nf4  uint8, JSON: blocksize, shape, nested_blocksize, nested_offset ...
              weight.nested_absmax        float32  [n_blocks / nested_blocksize]
              weight.nested_quant_map     float32  [256]
    int8      weight                      int8     [out_features, in_features]
              SCB                         float32  [out_features], the largest magnitude of a row

    weight = quant_map[code] * absmax, absmax = nested_quant_map[its code] * nested_absmax + nested_offset
    weight = code * SCB / 127

Sources: bitsandbytes 0.50 `functional.py`, `backends/default/ops.py`; Dettmers et al. 2023, arXiv:2305.14314, and 2022,
arXiv:2208.07339.
"""

import math

import torch
from torch import Tensor

from gptfast_cli.core.checkpoints.methods import WEIGHT, StoredModule, text
from gptfast_cli.core.checkpoints.methods._packing import FLOATS, grouped_codes, integers
from gptfast_cli.core.fields import Fields, parse_fields
from gptfast_cli.core.schemes import Weight

_ABSMAX, _MAP = "weight.absmax", "weight.quant_map"
_NESTED_ABSMAX, _NESTED_MAP = "weight.nested_absmax", "weight.nested_quant_map"
_STATE = "weight.quant_state.bitsandbytes__"
_KINDS = ("nf4", "fp4")
_ROW_MAX, _LAYOUT = "SCB", "weight_format"
_HIGHEST = 127


class BitsAndBytes:
    """Blocks of any size that divides the rows, or that the rows can be cut into smaller ones for."""

    tensors: tuple[str, ...] = (
        *(WEIGHT, _ABSMAX, _MAP, _NESTED_ABSMAX, _NESTED_MAP, _ROW_MAX, _LAYOUT),
        *(_STATE + kind for kind in _KINDS),
    )

    def weight(self, module: StoredModule) -> Weight:
        is_int8 = module.declared.declared.flag("load_in_8bit", default=False)
        return _int8(module) if is_int8 or _ROW_MAX in module else _blocks(module)


def _int8(module: StoredModule) -> Weight:
    if _LAYOUT in module and int(module.scalar(_LAYOUT, torch.uint8, torch.int8, torch.int64)):
        raise module.unsupported("a layout of bitsandbytes int8 other than rows")
    codes = module.tensor(WEIGHT, module.shape, torch.int8).view(torch.uint8) ^ 0x80
    scales = module.tensor(_ROW_MAX, (module.shape[0],), torch.float32) / _HIGHEST
    return grouped_codes(module, codes, integers(-128, 8), group_size=module.shape[1], scales=scales.unsqueeze(1))


def _blocks(module: StoredModule) -> Weight:
    out_features, in_features = module.shape
    state = _state(module)
    block_size = state.integer("blocksize")
    if tuple(state.shape("shape")) != module.shape:
        raise state.corrupt("shape", f"is {list(state.shape('shape'))}, and config.json makes it {list(module.shape)}")
    # where blocks go on in the next row, groups that are as large as their common borders allow
    size = math.gcd(in_features, block_size)
    absmax = _absmax(module, state, -(-out_features * in_features // block_size))
    scales = absmax.repeat_interleave(block_size // size)[: out_features * in_features // size]
    return grouped_codes(
        module,
        _codes(module),
        module.small(_MAP, (16,), torch.float32),
        group_size=size,
        scales=torch.unflatten(scales, 0, (out_features, -1)),
    )


def _codes(module: StoredModule) -> Tensor:
    """Codes [out_features, in_features]; the bytes may be stored in a wider dtype."""
    out_features, in_features = module.shape
    dtype = module.dtype(WEIGHT)
    n_bytes = -(-out_features * in_features // 2)
    raw = module.tensor(WEIGHT, (n_bytes // dtype.itemsize, 1), torch.uint8, *FLOATS).flatten().view(torch.uint8)
    codes = torch.stack([raw >> 4, raw & 15], -1).flatten()
    return codes[: out_features * in_features].reshape(module.shape)


def _absmax(module: StoredModule, state: Fields, n_blocks: int) -> Tensor:
    """The largest magnitude of each block, [n_blocks] float32."""
    if module.dtype(_ABSMAX) != torch.uint8:
        return module.tensor(_ABSMAX, (n_blocks,), torch.float32)
    per_outer = state.integer("nested_blocksize")
    outer = module.tensor(_NESTED_ABSMAX, (-(-n_blocks // per_outer),), torch.float32)
    codes = module.tensor(_ABSMAX, (n_blocks,), torch.uint8)
    table = module.tensor(_NESTED_MAP, (256,), torch.float32)
    offset = state.number("nested_offset", minimum=0)
    return table[codes.int()] * outer.repeat_interleave(per_outer)[:n_blocks] + offset


def _state(module: StoredModule) -> Fields:
    kinds = (text(module.declared.declared, "bnb_4bit_quant_type", _KINDS[0]), *_KINDS)
    own = next((_STATE + kind for kind in kinds if _STATE + kind in module), _STATE + kinds[0])
    raw = module.small(own, module.stored_shape(own), torch.uint8)
    return parse_fields(raw.numpy().tobytes(), f"{module.name}.{own}")


PLUG = BitsAndBytes()
