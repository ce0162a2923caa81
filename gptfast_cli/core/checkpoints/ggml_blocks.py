"""ggml's quantized blocks as weights of the grouped scheme: the same codes and scales in another order, bit for bit.

A row of a quantized tensor is a row of blocks. A block of 32 elements has one float16 scale, and with some types an
offset; one of 256 (the K-types and IQ4_XS) is cut into groups of 16 or 32, whose scales, and offsets, are small
integers times a float16 of the block. Codes of elements that stand far apart share a byte.
Source: https://github.com/ggml-org/llama.cpp, ggml/src/ggml-common.h and ggml-quants.c.
"""

from collections.abc import Callable, Mapping
from typing import Final

import torch
from torch import Tensor

from gptfast_cli.core.errors import UsageError
from gptfast_cli.core.gguf import TensorType
from gptfast_cli.core.schemes import Weight
from gptfast_cli.core.schemes.grouped import NAME as GROUPED
from gptfast_cli.core.schemes.grouped import Layout, bit_fields, in_words
from gptfast_cli.core.schemes.plain import plain

_PLAIN: Final = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

_Parts = dict[str, Tensor]


def ggml_weight(kind: TensorType, raw: Tensor, in_features: int) -> Weight:
    """Rows of a matrix, [rows, row_bytes] uint8, or a vector, [row_bytes]; on the meta device their outline.

    Raises UsageError for a type that gptfast does not read.
    """
    if kind.name in _PLAIN:
        return plain(raw.contiguous().view(_PLAIN[kind.name]))
    if kind.name not in _BLOCKS or raw.ndim != 2:
        known = ", ".join((*_PLAIN, *_BLOCKS))
        what = f"type {kind.name}" if raw.ndim == 2 else f"a vector of type {kind.name}"
        raise UsageError(f"{what} is not supported.", f"Take a file of another type: gptfast reads {known}.")
    parts = _BLOCKS[kind.name](torch.unflatten(raw, 1, (-1, kind.block_bytes)))
    return Weight(GROUPED, (len(raw), in_features), parts)


def _integers(lowest: int, n: int) -> Tensor:
    return torch.arange(lowest, lowest + n, dtype=torch.float32)


def _float16(blocks: Tensor, first: int) -> Tensor:
    """A float16 of each block, [rows, n_blocks]."""
    return blocks[..., first : first + 2].contiguous().view(torch.float16).squeeze(-1)


def _fields(packed: Tensor, width: int) -> Tensor:
    """The fields of `width` bits of bytes [..., n], the lowest first: [..., 8 / width, n]."""
    words = in_words(packed.contiguous())
    return torch.stack([bit_fields(words, shift, width) for shift in range(0, 8, width)], -2).view(torch.uint8)


def _planes(codes: Tensor, bits: int, group_size: int) -> Tensor:
    """Codes [rows, n_blocks, ...], in the order of the elements, as planes [rows, n_groups, code_bytes]."""
    return Layout(bits, group_size).pack(torch.unflatten(codes.flatten(1), 1, (-1, group_size)))


def _q8_0(blocks: Tensor) -> _Parts:
    return {"codes": blocks[..., 2:] ^ 0x80, "values": _integers(-128, 256), "scales": _float16(blocks, 0)}


def _q4_0(blocks: Tensor) -> _Parts:
    return {"codes": blocks[..., 2:].contiguous(), "values": _integers(-8, 16), "scales": _float16(blocks, 0)}


def _q4_1(blocks: Tensor) -> _Parts:
    codes, values = blocks[..., 4:].contiguous(), _integers(0, 16)
    return {"codes": codes, "values": values, "scales": _float16(blocks, 0), "offsets": _float16(blocks, 2)}


def _q5_0(blocks: Tensor) -> _Parts:
    return {"codes": _five_bits(blocks[..., 2:]), "values": _integers(-16, 32), "scales": _float16(blocks, 0)}


def _q5_1(blocks: Tensor) -> _Parts:
    codes, values = _five_bits(blocks[..., 4:]), _integers(0, 32)
    return {"codes": codes, "values": values, "scales": _float16(blocks, 0), "offsets": _float16(blocks, 2)}


def _five_bits(blocks: Tensor) -> Tensor:
    """4 bytes of highest bits, that of element i being bit i, and 16 of the lower ones, to planes."""
    high = _fields(blocks[..., :4], 1).transpose(-1, -2).flatten(-2)
    return _planes(_fields(blocks[..., 4:], 4).flatten(-2) | high << 4, 5, 32)


def _q2_k(blocks: Tensor) -> _Parts:
    packed, codes = blocks[..., :16].flatten(1), _fields(torch.unflatten(blocks[..., 16:80], -1, (2, 32)), 2)
    return {
        "codes": _planes(codes, 2, 16),
        "values": _integers(0, 4),
        "scales": packed & 15,
        "super_scales": _float16(blocks, 80),
        "offsets": packed >> 4,
        "super_offsets": -_float16(blocks, 82),
    }


def _q3_k(blocks: Tensor) -> _Parts:
    high, low = _fields(blocks[..., :32], 1), _fields(torch.unflatten(blocks[..., 32:96], -1, (2, 32)), 2)
    codes = low.flatten(-3) | high.flatten(-2) << 2
    scales = _fields(blocks[..., 96:104], 4).flatten(-2) | _fields(blocks[..., 104:108], 2).flatten(-2) << 4
    return {
        "codes": _planes(codes, 3, 16),
        "values": _integers(-4, 8),
        "scales": scales.flatten(1).view(torch.int8) - 32,
        "super_scales": _float16(blocks, 108),
    }


def _q4_k(blocks: Tensor) -> _Parts:
    low_first = torch.unflatten(blocks[..., 16:], -1, (4, 2, 16))  # two groups of 32: the low halves, the high halves
    first, second = low_first.unbind(-2)
    codes = torch.stack([first & 15 | second << 4, first >> 4 | second & 0xF0], -2)
    return {"codes": codes.flatten(1, 3), "values": _integers(0, 16), **_k_scales(blocks)}


def _q5_k(blocks: Tensor) -> _Parts:
    high, low = _fields(blocks[..., 16:48], 1), _fields(torch.unflatten(blocks[..., 48:], -1, (4, 32)), 4)
    return {"codes": _planes(low.flatten(-3) | high.flatten(-2) << 4, 5, 32), "values": _integers(0, 32)} | _k_scales(
        blocks
    )


def _k_scales(blocks: Tensor) -> _Parts:
    """Scales and offsets of eight groups, 6 bits each in 12 bytes, and their float16 factors."""
    scales, offsets, both = torch.unflatten(blocks[..., 4:16], -1, (3, 4)).unbind(-2)
    return {
        "scales": torch.cat([scales & 63, both & 15 | scales >> 2 & 0x30], -1).flatten(1),
        "super_scales": _float16(blocks, 0),
        "offsets": torch.cat([offsets & 63, both >> 4 | offsets >> 2 & 0x30], -1).flatten(1),
        "super_offsets": -_float16(blocks, 2),
    }


def _q6_k(blocks: Tensor) -> _Parts:
    low = _fields(torch.unflatten(blocks[..., :128], -1, (2, 64)), 4).flatten(-3)
    high = _fields(torch.unflatten(blocks[..., 128:192], -1, (2, 32)), 2).flatten(-3)
    return {
        "codes": _planes(low | high << 4, 6, 16),
        "values": _integers(-32, 64),
        "scales": blocks[..., 192:208].flatten(1).view(torch.int8),
        "super_scales": _float16(blocks, 208),
    }


_IQ4_VALUES: Final = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


def _iq4_nl(blocks: Tensor) -> _Parts:
    return _q4_0(blocks) | {"values": torch.tensor(_IQ4_VALUES, dtype=torch.float32)}


def _iq4_xs(blocks: Tensor) -> _Parts:
    high = _fields(blocks[..., 2:4], 2).transpose(-1, -2).flatten(-2)
    low = _fields(blocks[..., 4:8], 4).transpose(-1, -2).flatten(-2)
    return {
        "codes": torch.unflatten(blocks[..., 8:], -1, (8, 16)).flatten(1, 2),
        "values": torch.tensor(_IQ4_VALUES, dtype=torch.float32),
        "scales": (low | high << 4).flatten(1).view(torch.int8) - 32,
        "super_scales": _float16(blocks, 0),
    }


_E2M1: Final = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def _mxfp4(blocks: Tensor) -> _Parts:
    return {
        "codes": blocks[..., 1:].contiguous(),
        "values": torch.tensor((*_E2M1, 0.0, *(-value for value in _E2M1[1:]))),  # -0 is 0, as in ggml
        "scales": blocks[..., 0].contiguous().view(torch.float8_e8m0fnu),
    }


_BLOCKS: Final[Mapping[str, Callable[[Tensor], _Parts]]] = {
    "Q8_0": _q8_0,
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
    "IQ4_NL": _iq4_nl,
    "IQ4_XS": _iq4_xs,
    "MXFP4": _mxfp4,
}
