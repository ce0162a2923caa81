"""The int4 scheme: half a byte a weight, with a bfloat16 scale and a 4-bit zero point for each group of a row.

A row is cut into groups of G = 32, 64, 128 or 256 elements, n_groups = ceil(in_features / G):

    codes   uint8     [out_features, n_groups, G / 2]
            byte j of a group holds element j in its low half and element j + G / 2 in its high half
    scales  bfloat16  [out_features, n_groups]
    zeros   uint8     [out_features, ceil(n_groups / 2)]
            byte j holds the zero point of group 2j in its low half and that of group 2j + 1, or 0, in its high half

    weight[o, i] = (code - zero) * scale of element i % G of group i // G, code and zero in 0..15

Elements at and past `in_features` hold the zero point: they are exact zeros. Where `in_features` fills an even number
of groups a weight takes 4 + 20 / G bits: 4.625 at G = 32, 4.08 at 256. A last group that is not full takes the bytes of
a full one. Every weight is exact in float32.

A float16 scale is as good as a bfloat16 one on normal weights, but has no room for the very large and small; a fixed
zero point of 8 has a larger error there, also with a signed scale.
"""

import torch
import torch.nn.functional as F  # noqa: N812  (the name that everyone knows)
from torch import Tensor

from gptfast_cli.core.errors import UsageError
from gptfast_cli.core.schemes import AffineFitter, AffineParams, GroupParams, Weight, is_like, select_part_rows

NAME = "int4"
_HIGHEST = 15
_SCALE_DTYPE = torch.bfloat16
_CODES, _SCALES, _ZEROS = "codes", "scales", "zeros"


class Int4:
    """Groups of one size, which the shape of the codes tells."""

    group_sizes: tuple[int, ...] = (32, 64, 128, 256)
    shared_parts: tuple[str, ...] = ()

    def is_whole(self, weight: Weight) -> bool:
        if len(weight.shape) != 2 or _CODES not in weight.parts or weight.parts[_CODES].ndim != 3:
            return False
        group_size = 2 * weight.parts[_CODES].shape[-1]
        return group_size in self.group_sizes and is_like(weight, self.meta_weight(weight.shape, group_size))

    def dense(self, weight: Weight, dtype: torch.dtype) -> Tensor:
        return _dense(weight.parts[_CODES], weight.parts[_SCALES], weight.parts[_ZEROS], weight.shape[-1]).to(dtype)

    def rows(self, weight: Weight, index: Tensor, dtype: torch.dtype) -> Tensor:
        codes, scales, zeros = (weight.parts[name][index] for name in (_CODES, _SCALES, _ZEROS))
        return _dense(codes, scales, zeros, weight.shape[-1]).to(dtype)

    def select_rows(self, weight: Weight, ranges: tuple[slice, ...]) -> Weight:
        return select_part_rows(weight, ranges)

    def columns(self, weight: Weight, columns: slice) -> Weight:
        start, stop, _ = columns.indices(weight.shape[-1])
        group_size = 2 * weight.parts[_CODES].shape[-1]
        size = self._common(group_size, start, stop, weight.shape[-1])
        groups = slice(start // group_size, -(-stop // group_size))
        codes, params = _unpacked(weight, groups)
        codes = torch.unflatten(codes.flatten(-2), -1, (-1, size))
        finer = slice((start - groups.start * group_size) // size, -(-(stop - groups.start * group_size) // size))
        scales, zeros = (part.repeat_interleave(group_size // size, -1) for part in (params.scales, params.zeros))
        cut = AffineParams(scales[:, finer].contiguous(), zeros[:, finer].contiguous(), 0, _HIGHEST)
        return self.pack(codes[:, finer].contiguous(), cut, stop - start)

    def _common(self, group_size: int, start: int, stop: int, in_features: int) -> int:
        """The largest size of groups, no larger than they are, that has borders at both ends."""
        for size in reversed(self.group_sizes):
            if size <= group_size and start % size == 0 and (stop % size == 0 or stop == in_features):
                return size
        raise UsageError(
            f"A matrix in {NAME} cannot be cut at columns {start} and {stop}: its smallest groups are of "
            f"{self.group_sizes[0]}.",
            "Take fewer ranks, or the model in int8.",
        )

    def to(self, weight: Weight, device: torch.device, dtype: torch.dtype) -> Weight:  # noqa: ARG002  (it is fixed)
        return Weight(NAME, weight.shape, {name: part.to(device) for name, part in weight.parts.items()})

    def meta_weight(self, shape: tuple[int, ...], group_size: int | None) -> Weight:
        assert group_size in self.group_sizes, group_size
        out_features, in_features = shape
        n_groups = -(-in_features // group_size)
        codes = torch.empty(out_features, n_groups, group_size // 2, dtype=torch.uint8, device="meta")
        scales = torch.empty(out_features, n_groups, dtype=_SCALE_DTYPE, device="meta")
        zeros = torch.empty(out_features, -(-n_groups // 2), dtype=torch.uint8, device="meta")
        return Weight(NAME, shape, {_CODES: codes, _SCALES: scales, _ZEROS: zeros})

    def fitter(self, matrix: Tensor) -> AffineFitter:  # noqa: ARG002  (groups are independent)
        return AffineFitter(_grid)

    def pack(self, codes: Tensor, params: GroupParams, in_features: int) -> Weight:
        assert isinstance(params, AffineParams)
        first, second = codes.view(torch.uint8).chunk(2, dim=-1)
        zeros = F.pad(params.zeros, (0, params.zeros.shape[-1] % 2)).view(torch.uint8)
        parts = {_CODES: first | second << 4, _SCALES: params.scales, _ZEROS: zeros[:, ::2] | zeros[:, 1::2] << 4}
        return Weight(NAME, (len(codes), in_features), parts)


def _grid(low: Tensor, high: Tensor) -> AffineParams:
    limits = torch.finfo(_SCALE_DTYPE)
    # cut so that 15 steps are finite, and a step wide enough to divide by; both are far from any real weight
    low, high = low.double().clamp(-limits.max / 2, 0), high.double().clamp(0, limits.max / 2)
    scales = _rounded_down(((high - low) / _HIGHEST).clamp(min=limits.tiny))
    zeros = (0.5 - low / scales).floor().clamp(0, _HIGHEST)
    return AffineParams(scales, zeros.to(torch.int8), 0, _HIGHEST)


def _unpacked(weight: Weight, groups: slice) -> tuple[Tensor, AffineParams]:
    """Codes [out_features, n_groups, G] of some groups, and their params."""
    codes, scales, zeros = (weight.parts[name] for name in (_CODES, _SCALES, _ZEROS))
    first = groups.start // 2
    halves = zeros[:, first : -(-groups.stop // 2)]
    zeros = torch.stack([halves & 15, halves >> 4], dim=-1).flatten(-2)[:, groups.start - 2 * first :]
    codes = codes[:, groups]
    codes = torch.cat([codes & 15, codes >> 4], dim=-1)
    n_groups = codes.shape[1]
    return codes.view(torch.int8), AffineParams(scales[:, groups], zeros[:, :n_groups].view(torch.int8), 0, _HIGHEST)


def _dense(codes: Tensor, scales: Tensor, zeros: Tensor, in_features: int) -> Tensor:
    """Parts with rows [...] instead of [out_features] as [..., in_features] float32."""
    codes = torch.cat([codes & 15, codes >> 4], dim=-1)  # [..., n_groups, group_size]
    zeros = torch.stack([zeros & 15, zeros >> 4], dim=-1).flatten(-2)[..., : scales.shape[-1]]
    return AffineParams(scales, zeros, 0, _HIGHEST).decode(codes).flatten(-2)[..., :in_features].contiguous()


def _rounded_down(scales: Tensor) -> Tensor:
    """Positive scales in 16 bits, none larger than it was.

    Were one larger, a range could come out a code short, and quantizing again what was quantized would change it.
    """
    rounded = scales.to(_SCALE_DTYPE)
    # the bits of positive floats count up with their values
    bits = rounded.view(torch.int16) - (rounded.double() > scales).to(torch.int16)
    return bits.view(_SCALE_DTYPE)


PLUG = Int4()
