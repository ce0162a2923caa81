"""What the methods have in common: packed bits, tables of small floats, and scales of groups, blocks and rows."""

import math
from typing import Final

import torch
import torch.nn.functional as F  # noqa: N812  (the name that everyone knows)
from torch import Tensor

from gptfast_cli.core.checkpoints.methods import WEIGHT, StoredModule
from gptfast_cli.core.schemes import Weight
from gptfast_cli.core.schemes.grouped import PLANES, grouped

FLOATS: Final = (torch.float16, torch.bfloat16, torch.float32)
FLOAT8: Final = (torch.float8_e4m3fn, torch.float8_e5m2)
EXPONENTS: Final = (torch.uint8, torch.float8_e8m0fnu)
E2M1: Final = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
"""Floats of 4 bits by their code (OCP Microscaling specification 1.0, section 5.3.3)."""


def bit_stream(packed: Tensor, bits: int) -> Tensor:
    """Codes of integers [..., n], the first in their lowest bits: [..., n_bits / bits] uint8.

    A code may begin in one integer and end in the next. Bits at the end that are no whole code are left out.
    """
    raw = packed.contiguous().view(torch.uint8)
    mask = (1 << bits) - 1
    if 8 % bits == 0:
        return torch.stack([raw >> shift & mask for shift in range(0, 8, bits)], -1).flatten(-2)
    raw = torch.unflatten(F.pad(raw, (0, -raw.shape[-1] % bits)), -1, (-1, bits))  # 8 codes
    codes = []
    for first, shift in (divmod(bits * number, 8) for number in range(8)):
        code = raw[..., first] >> shift
        codes.append((code | raw[..., first + 1] << 8 - shift if shift + bits > 8 else code) & mask)
    return torch.stack(codes, -1).flatten(-2)


def n_words(n_codes: int, bits: int) -> int:
    """Integers of 32 bits that hold so many codes."""
    return -(-n_codes * bits // 32)


def integers(lowest: int, bits: int) -> Tensor:
    """The values of codes that count up from `lowest`, [2^bits] float32."""
    return torch.arange(lowest, lowest + (1 << bits), dtype=torch.float32)


def grouped_codes(
    module: StoredModule, codes: Tensor, values: Tensor, *, group_size: int | None = None, **parts: Tensor | None
) -> Weight:
    """A module's codes [out_features, in_features or more] and other parts as a weight of the grouped scheme.

    A whole row is filled up to whole bytes. Raises UsageError where groups do not end at bytes.
    """
    in_features, bits = module.shape[1], (len(values) - 1).bit_length()
    step = 8 // min(PLANES[bits])
    size = group_size or module.group_size
    if size >= in_features:
        size = -(-in_features // step) * step
    if size % step:
        raise module.unsupported(f"a group of {size} elements of {bits} bits")
    codes = codes[:, :in_features]
    missing = -in_features % size
    codes = torch.unflatten(F.pad(codes, (0, missing)) if missing else codes, 1, (-1, size))
    return grouped(codes, values, module.shape, **parts)


def group_scales(module: StoredModule, own: str, *dtypes: torch.dtype) -> Tensor:
    """The scale of each group, [out_features, n_groups], from those of groups or blocks, of rows, or of the matrix."""
    out_features, form, stored = module.shape[0], module.format, module.stored_shape(own)
    shape: tuple[int, ...]
    if form.group_size is None and math.prod(stored) == 1:
        return module.tensor(own, stored, *dtypes).reshape(1, 1).expand(out_features, 1)
    if form.group_size is None:
        shape = (out_features,) if len(stored) == 1 else (out_features, 1)
        return module.tensor(own, shape, *dtypes).reshape(out_features, 1)
    n_rows = -(-out_features // form.group_rows)
    shape = (n_rows, 1, module.n_groups, 1) if len(stored) == 4 else (n_rows, module.n_groups)
    scales = module.tensor(own, shape, *dtypes).reshape(n_rows, 1, module.n_groups)
    return scales.expand(-1, form.group_rows, -1).reshape(-1, module.n_groups)[:out_features]


def exponents(scales: Tensor) -> Tensor:
    """Powers of two that may be stored as uint8 as what they are, float8_e8m0fnu."""
    return scales.view(torch.float8_e8m0fnu)


def float8_weight(module: StoredModule, scale: str) -> Weight:
    """A matrix of 8-bit floats [out_features, in_features]; `scale` is the own name of its scales."""
    weight = module.tensor(WEIGHT, module.shape, *FLOAT8)
    scales = group_scales(module, scale, *FLOATS, *EXPONENTS)
    scales = exponents(scales) if scales.dtype == torch.uint8 else scales
    values = torch.arange(256, dtype=torch.uint8).view(weight.dtype).float()
    return grouped_codes(module, weight.view(torch.uint8), values, scales=scales)


def float4_weight(module: StoredModule, packed: str, scales: Tensor, matrix_scale: Tensor | None = None) -> Weight:
    """A matrix of e2m1 floats, two in a byte of `packed` [out_features, in_features / 2], the first one lowest."""
    out_features, in_features = module.shape
    codes = bit_stream(module.tensor(packed, (out_features, -(-in_features // 2)), torch.uint8), 4)
    return grouped_codes(module, codes, torch.tensor(E2M1), scales=scales, matrix_scale=matrix_scale)


def int8_weight(module: StoredModule, scale: str, zero_point: str | None = None) -> Weight:
    """A matrix of signed bytes [out_features, in_features]; zero points, if there are any, are signed bytes too."""
    codes = module.tensor(WEIGHT, module.shape, torch.int8).view(torch.uint8) ^ 0x80
    scales = group_scales(module, scale, *FLOATS)
    if zero_point is None or zero_point not in module:
        return grouped_codes(module, codes, integers(-128, 8), scales=scales)
    zeros = group_scales(module, zero_point, torch.int8).contiguous().view(torch.uint8) ^ 0x80
    return grouped_codes(module, codes, integers(0, 8), scales=scales, zeros=zeros)


def act_order(module: StoredModule, own: str) -> Tensor | None:
    """Which column each element of a row belongs to, [in_features] int32, if columns were grouped by importance.

    The tensor has the group of each column. Sorted by their groups, columns are in the order of the scales.
    Raises CorruptError for a group that is not there, UsageError for groups of other sizes than the declared one.
    """
    if own not in module:
        return None
    in_features = module.shape[1]
    groups = module.small(own, (in_features,), torch.int32, torch.int64).long()
    low, high = map(int, groups.aminmax())
    if low < 0 or high >= module.n_groups:
        raise module.corrupt(own, f"names group {low if low < 0 else high} of {module.n_groups}")
    columns = torch.arange(in_features)
    order = groups.argsort(stable=True)
    if not torch.equal(groups[order], columns // module.group_size):
        raise module.unsupported(f"{own} whose groups are not of {module.group_size} columns")
    return None if torch.equal(order, columns) else order.int()


def ordered(codes: Tensor, order: Tensor | None) -> Tensor:
    """Codes [out_features, in_features] of columns, in the order of their groups."""
    return codes if order is None else codes[:, order.long().to(codes.device)]
