"""The grouped scheme: codes of 2 to 8 bits on any table of values, with a scale for each group of a row.

It holds what other programs quantized, bit for bit: integers, NF4, e2m1, e4m3 and other codebooks; scales of one level
or two; zero points or float offsets; inputs in another order. A row is cut into groups of G elements,
n_groups = ceil(in_features / G):

    codes          uint8    [out_features, n_groups, b G / 8], codes of b = 2, 3, 4, 5, 6 or 8 bits in planes
    values         float32  [2^b], the value of each code
    scales         [out_features, n_groups], any of SCALE_DTYPES
    super_scales   float16, bfloat16 or float32 [out_features, n_super], one for every ceil(n_groups / n_super) groups
    matrix_scale   float32 or float64 [1]
    zeros          uint8    [out_features, n_groups], subtracted from the values
    offsets        [out_features, n_groups], any of SCALE_DTYPES, added to the scaled values
    super_offsets  as super_scales
    order          int32    [in_features]: element i of a row belongs to column order[i]

Parts from `super_scales` on may be absent. With s = scales * super_scales * matrix_scale and t = offsets *
super_offsets, each rounded to float32 once,

    weight[o, order[i]] = s (values[code] - zero) + t

where product and sum are rounded to float32 too: the weights are those of the programs that define the formats.

A plane holds w bits of each code, the lowest first: 8 = 8, 6 = 4 + 2, 5 = 4 + 1, 4 = 4, 3 = 2 + 1, 2 = 2. Field f of
its byte j (of w bits, from the lowest) is that of element j + f G w / 8. Elements at and past `in_features` hold
anything.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from gptfast_cli.core.errors import UsageError
from gptfast_cli.core.schemes import Weight, select_part_rows

NAME = "grouped"

PLANES: Final[Mapping[int, tuple[int, ...]]] = {2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2), 8: (8,)}
"""Widths of the planes of codes, by their bits."""

SCALE_DTYPES: Final = frozenset(
    (
        torch.float16,
        torch.bfloat16,
        torch.float32,
        torch.float8_e4m3fn,
        torch.float8_e8m0fnu,
        torch.int8,
        torch.uint8,
    )
)
_SUPER_DTYPES: Final = frozenset((torch.float16, torch.bfloat16, torch.float32))
_MATRIX_DTYPES: Final = frozenset((torch.float32, torch.float64))

_PARTS: Final = (
    *("codes", "values", "scales", "super_scales", "matrix_scale", "zeros", "offsets", "super_offsets", "order"),
)


@dataclass(frozen=True, slots=True)
class Layout:
    """How the codes of a weight are stored: bits of a code, and elements of a group."""

    bits: int
    group_size: int

    @property
    def code_bytes(self) -> int:
        """Bytes of the codes of a group."""
        return self.bits * self.group_size // 8

    @property
    def is_possible(self) -> bool:
        """Whether each plane of a group takes whole bytes."""
        return self.group_size > 0 and not any(self.group_size * width % 8 for width in PLANES[self.bits])

    def pack(self, codes: Tensor) -> Tensor:
        """Codes [..., n_groups, group_size] uint8 as planes, [..., n_groups, code_bytes] uint8."""
        planes, shift = [], 0
        for width in PLANES[self.bits]:
            words = in_words(torch.unflatten(codes.contiguous(), -1, (8 // width, -1)))
            plane = bit_fields(words[..., 0, :], shift, width)
            for at in range(1, 8 // width):
                plane |= bit_fields(words[..., at, :], shift, width) << at * width
            planes.append(plane.view(torch.uint8))
            shift += width
        return torch.cat(planes, -1)

    def unpack(self, planes: Tensor) -> Tensor:
        """The codes of planes; the inverse of `pack`."""
        codes, first, shift = None, 0, 0
        for width in PLANES[self.bits]:
            n_bytes = self.group_size * width // 8
            plane = planes[..., first : first + n_bytes]
            fields = torch.cat([plane >> at * width & (1 << width) - 1 for at in range(8 // width)], -1)
            codes = fields if codes is None else codes | fields << shift
            first, shift = first + n_bytes, shift + width
        assert codes is not None
        return codes


_WORDS: Final = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.uint8}


def in_words(packed: Tensor) -> Tensor:
    """Contiguous bytes [..., n] as the widest integers that n allows: an operation on them takes so many at once."""
    return packed.view(_WORDS[math.gcd(packed.shape[-1], 8)])


def bit_fields(words: Tensor, shift: int, width: int) -> Tensor:
    """Bits `shift` to `shift + width` of each byte of words, in the lowest bits of that byte."""
    mask = int.from_bytes(bytes([(1 << width) - 1]) * words.itemsize, "little", signed=True)
    return words >> shift & mask


def layout(weight: Weight) -> Layout:
    """The layout of a grouped weight."""
    bits = (len(weight.parts["values"]) - 1).bit_length()
    return Layout(bits, 8 * weight.parts["codes"].shape[-1] // bits)


def grouped(codes: Tensor, values: Tensor, shape: tuple[int, int], **parts: Tensor | None) -> Weight:
    """Codes [out_features, n_groups, group_size] uint8 and other parts, as the module describes them, as a weight."""
    bits = (len(values) - 1).bit_length()
    packed = Layout(bits, codes.shape[-1]).pack(codes)
    given = {"codes": packed, "values": values} | {name: part for name, part in parts.items() if part is not None}
    return Weight(NAME, shape, {name: given[name] for name in _PARTS if name in given})


class Grouped:
    """What the parts of a weight are, they tell themselves."""

    group_sizes: tuple[int, ...] = ()
    shared_parts: tuple[str, ...] = ("values", "matrix_scale", "order")

    def is_whole(self, weight: Weight) -> bool:
        return set(weight.parts) <= set(_PARTS) and _codes_fit(weight) and _params_fit(weight)

    def dense(self, weight: Weight, dtype: torch.dtype) -> Tensor:
        return _dense(weight, weight.parts).to(dtype)

    def rows(self, weight: Weight, index: Tensor, dtype: torch.dtype) -> Tensor:
        parts = {name: part if name in self.shared_parts else part[index] for name, part in weight.parts.items()}
        return _dense(weight, parts).to(dtype)

    def select_rows(self, weight: Weight, ranges: tuple[slice, ...]) -> Weight:
        return select_part_rows(weight, ranges)

    def columns(self, weight: Weight, columns: slice) -> Weight:
        start, stop, _ = columns.indices(weight.shape[1])
        if (start, stop) == (0, weight.shape[1]):
            return weight
        form = layout(weight)
        size = math.gcd(form.group_size, start, form.group_size if stop == weight.shape[1] else stop)
        finer = Layout(form.bits, size)
        if not finer.is_possible or "order" in weight.parts:
            why = "its columns are in the order of their groups" if "order" in weight.parts else "it is inside a byte"
            raise UsageError(
                f"A quantized matrix cannot be cut at columns {start} and {stop}: {why}.",
                "Take fewer ranks, or another model.",
            )
        parts = dict(weight.parts)
        if size < form.group_size:
            codes = torch.unflatten(form.unpack(parts["codes"]).flatten(1), 1, (-1, size))
            parts["codes"] = finer.pack(codes)
        n_groups, times = weight.parts["scales"].shape[1], form.group_size // size
        groups = slice(start // size, -(-stop // size))
        for name in ("super_scales", "super_offsets"):  # one for each group then
            if name in parts:
                per_super = -(-n_groups // parts[name].shape[1])
                parts[name] = _repeated(parts[name], per_super)[:, :n_groups]
        for name in parts.keys() - {"codes", *self.shared_parts}:
            parts[name] = _repeated(parts[name], times)[:, groups].contiguous()
        parts["codes"] = parts["codes"][:, groups].contiguous()
        return Weight(NAME, (weight.shape[0], stop - start), parts)

    def to(self, weight: Weight, device: torch.device, dtype: torch.dtype) -> Weight:  # noqa: ARG002  (it is fixed)
        return Weight(NAME, weight.shape, {name: part.to(device) for name, part in weight.parts.items()})


def _codes_fit(weight: Weight) -> bool:
    codes, values = weight.parts.get("codes"), weight.parts.get("values")
    if codes is None or values is None or len(weight.shape) != 2 or codes.ndim != 3 or values.ndim != 1:
        return False
    if (codes.dtype, values.dtype) != (torch.uint8, torch.float32) or len(values) not in {1 << bits for bits in PLANES}:
        return False
    form = layout(weight)
    n_groups = -(-weight.shape[1] // form.group_size) if form.is_possible else 0
    return tuple(codes.shape) == (weight.shape[0], n_groups, form.code_bytes)


def _params_fit(weight: Weight) -> bool:
    parts, n_groups = weight.parts, weight.parts["codes"].shape[1]
    n_super = parts["super_scales"].shape[-1] if "super_scales" in parts else 1
    if not 0 < n_super <= n_groups or -(-n_groups // -(-n_groups // n_super)) != n_super:
        return False
    by_group, by_super = (weight.shape[0], n_groups), (weight.shape[0], n_super)
    wanted = {
        "scales": (SCALE_DTYPES, by_group),
        "super_scales": (_SUPER_DTYPES, by_super),
        "matrix_scale": (_MATRIX_DTYPES, (1,)),
        "zeros": ({torch.uint8}, by_group),
        "offsets": (SCALE_DTYPES, by_group),
        "super_offsets": (_SUPER_DTYPES, by_super),
        "order": ({torch.int32}, (weight.shape[1],)),
    }
    found = {name: part for name, part in parts.items() if name in wanted}
    return (
        "scales" in parts
        and not ("super_offsets" in parts and "offsets" not in parts)
        and all(part.dtype in wanted[name][0] and tuple(part.shape) == wanted[name][1] for name, part in found.items())
        and ("order" not in parts or _is_permutation(parts["order"]))
    )


def _is_permutation(order: Tensor) -> bool:
    return order.is_meta or torch.equal(order.sort().values, torch.arange(len(order), dtype=torch.int32))


def _dense(weight: Weight, parts: Mapping[str, Tensor]) -> Tensor:
    """Parts with rows [...] instead of [out_features] as [..., in_features] float32."""
    w = parts["values"][layout(weight).unpack(parts["codes"]).int()]  # [..., n_groups, group_size]
    if "zeros" in parts:
        w = w.sub_(parts["zeros"].unsqueeze(-1))
    w = w.mul_(scales(parts).unsqueeze(-1))
    if "offsets" in parts:
        w = w.add_(offsets(parts).unsqueeze(-1))
    w = w.flatten(-2)[..., : weight.shape[1]]
    if "order" not in parts:
        return w.contiguous()
    return torch.empty_like(w, memory_format=torch.contiguous_format).index_copy_(-1, parts["order"].long(), w)


def scales(parts: Mapping[str, Tensor]) -> Tensor:
    """The scale of each group, [..., n_groups] float32."""
    of_groups = _times(parts["scales"], parts.get("super_scales"))
    matrix_scale = parts.get("matrix_scale")
    return of_groups if matrix_scale is None else (of_groups.to(matrix_scale.dtype) * matrix_scale).float()


def offsets(parts: Mapping[str, Tensor]) -> Tensor:
    """What is added to the elements of each group, [..., n_groups] float32; `offsets` must be there."""
    return _times(parts["offsets"], parts.get("super_offsets"))


def _times(of_groups: Tensor, of_super: Tensor | None) -> Tensor:
    if of_super is None:
        return of_groups.float()
    n_groups = of_groups.shape[-1]
    return of_groups.float() * _repeated(of_super.float(), -(-n_groups // of_super.shape[-1]))[..., :n_groups]


def _repeated(part: Tensor, times: int) -> Tensor:
    return part if times == 1 else part.repeat_interleave(times, -1)


PLUG = Grouped()
