"""The plain scheme: a weight is one tensor in a floating dtype, as it was trained or rounded to bfloat16."""

import torch
from torch import Tensor

from gptfast_cli.core.schemes import Weight, select_part_rows

NAME = "plain"
_PART = "weight"


def plain(tensor: Tensor) -> Weight:
    """A tensor as a weight of the plain scheme."""
    return Weight(NAME, tuple(tensor.shape), {_PART: tensor})


class Plain:
    """One part, which is the weight itself."""

    group_sizes: tuple[int, ...] = ()
    shared_parts: tuple[str, ...] = ()

    def is_whole(self, weight: Weight) -> bool:
        if set(weight.parts) != {_PART}:
            return False
        part = weight.parts[_PART]
        return part.is_floating_point() and tuple(part.shape) == weight.shape

    def dense(self, weight: Weight, dtype: torch.dtype) -> Tensor:
        return weight.parts[_PART].to(dtype)

    def rows(self, weight: Weight, index: Tensor, dtype: torch.dtype) -> Tensor:
        return weight.parts[_PART][index].to(dtype)

    def select_rows(self, weight: Weight, ranges: tuple[slice, ...]) -> Weight:
        return select_part_rows(weight, ranges)

    def columns(self, weight: Weight, columns: slice) -> Weight:
        return plain(weight.parts[_PART][:, columns].contiguous())

    def to(self, weight: Weight, device: torch.device, dtype: torch.dtype) -> Weight:
        return plain(weight.parts[_PART].to(device=device, dtype=dtype))


PLUG = Plain()
