"""The int8 scheme: a signed byte a weight and a bfloat16 scale a row, symmetric about zero.

    codes   int8      [out_features, in_features]   -127..127
    scales  bfloat16  [out_features]

    weight[o, i] = codes[o, i] * scales[o]

Every weight is exact in float32. What was measured on normal weights: codes that are chosen after the scale was
rounded make good for it, so that a float32 scale has the same error to three digits.
"""

import torch
from torch import Tensor

from gptfast_cli.core.schemes import AffineFitter, AffineParams, GroupParams, Weight, is_like, select_part_rows

NAME = "int8"
_HIGHEST = 127
_SCALE_DTYPE = torch.bfloat16
_CODES, _SCALES = "codes", "scales"


class Int8:
    """Every row is one group."""

    group_sizes: tuple[int, ...] = ()
    shared_parts: tuple[str, ...] = ()

    def is_whole(self, weight: Weight) -> bool:
        return len(weight.shape) == 2 and is_like(weight, self.meta_weight(weight.shape, None))

    def dense(self, weight: Weight, dtype: torch.dtype) -> Tensor:
        return _dense(weight.parts[_CODES], weight.parts[_SCALES], dtype)

    def rows(self, weight: Weight, index: Tensor, dtype: torch.dtype) -> Tensor:
        return _dense(weight.parts[_CODES][index], weight.parts[_SCALES][index], dtype)

    def select_rows(self, weight: Weight, ranges: tuple[slice, ...]) -> Weight:
        return select_part_rows(weight, ranges)

    def columns(self, weight: Weight, columns: slice) -> Weight:
        # every part of a row keeps the scale of the whole row
        codes = weight.parts[_CODES][:, columns].contiguous()
        return Weight(NAME, tuple(codes.shape), {_CODES: codes, _SCALES: weight.parts[_SCALES]})

    def to(self, weight: Weight, device: torch.device, dtype: torch.dtype) -> Weight:  # noqa: ARG002  (it is fixed)
        return Weight(NAME, weight.shape, {name: part.to(device) for name, part in weight.parts.items()})

    def meta_weight(self, shape: tuple[int, ...], group_size: int | None) -> Weight:
        assert group_size is None, group_size
        out_features, in_features = shape
        codes = torch.empty(out_features, in_features, dtype=torch.int8, device="meta")
        scales = torch.empty(out_features, dtype=_SCALE_DTYPE, device="meta")
        return Weight(NAME, shape, {_CODES: codes, _SCALES: scales})

    def fitter(self, matrix: Tensor) -> AffineFitter:  # noqa: ARG002  (rows are independent)
        return AffineFitter(_grid)

    def pack(self, codes: Tensor, params: GroupParams, in_features: int) -> Weight:
        assert isinstance(params, AffineParams)
        shape = (len(codes), in_features)
        return Weight(NAME, shape, {_CODES: codes.reshape(shape), _SCALES: params.scales.reshape(-1)})


def _grid(low: Tensor, high: Tensor) -> AffineParams:
    limits = torch.finfo(_SCALE_DTYPE)
    # large enough to divide by, and no code stands for infinity; both are far from any real weight
    scales = (torch.maximum(-low, high) / _HIGHEST).clamp(limits.tiny, limits.max / (_HIGHEST + 1)).to(_SCALE_DTYPE)
    return AffineParams(scales, torch.zeros_like(scales, dtype=torch.int8), -_HIGHEST, _HIGHEST)


def _dense(codes: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """Codes [..., in_features] times scales [...]; rounded once, where `dtype` is narrower than float32."""
    return codes.float().mul_(scales.unsqueeze(-1)).to(dtype)


PLUG = Int8()
