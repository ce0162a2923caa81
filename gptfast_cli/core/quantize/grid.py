"""Groups of a matrix's columns, and the search for the grid of each with the least weighted error.

The error of a grid is sum_i h_i (w_i - v_i)^2, where v_i is the number of the grid next to w_i and h_i says how much
element i matters. Candidates come from the group's range with either end pulled in by itself, which moves scale and
zero point both. The codes that a candidate gives are held, and it takes the scale that suits them best, least squares:
sum h w c / sum h c^2 with c = code - zero. Whatever is not better than the grid of the whole range is left alone.

Ends that are pushed out would lower this error by another 2 % in groups of 32, but not the divergence of the models
that were measured: it is the largest weights that then lie between two codes.
"""

from collections.abc import Callable
from dataclasses import replace
from itertools import product

import torch
import torch.nn.functional as F  # noqa: N812  (the name that everyone knows)
from torch import Tensor

from gptfast_cli.core.errors import CorruptError
from gptfast_cli.core.schemes import Grid, QuantizedScheme, Weight


def in_groups(matrix: Tensor, group_size: int | None) -> Tensor:
    """A matrix [out, in] as groups [out, n_groups, group_size] float32, the last one filled up with zeros.

    Where `group_size` is None a whole row is a group.
    """
    size = group_size or matrix.shape[-1]
    padded = F.pad(matrix.float(), (0, -matrix.shape[-1] % size))
    return torch.unflatten(padded, -1, (-1, size))


def ranges(groups: Tensor) -> tuple[Tensor, Tensor]:
    """The lowest and the highest element of each group, [..., n_groups]; raises CorruptError on NaN and infinity."""
    low, high = groups.aminmax(dim=-1)
    if not bool((low.isfinite() & high.isfinite()).all()):  # NaN comes through
        raise CorruptError(
            "A weight to be quantised holds NaN or infinite values.",
            "The model is damaged: fetch it again, or tell its makers.",
        )
    return low, high


def in_row_blocks(
    matrix: Tensor,
    scheme: QuantizedScheme,
    group_size: int | None,
    quantize: Callable[[Tensor], Weight],
    *,
    block_elements: int,
) -> Weight:
    """A matrix as a weight of a scheme, from `quantize` a block of its rows at a time.

    So what is held beside the matrix and the weight stays small; a block has `block_elements`, or one row.
    """
    shape = (matrix.shape[0], matrix.shape[1])
    outline = scheme.outline(shape, group_size)
    parts = {name: torch.empty_like(part, device=matrix.device) for name, part in outline.parts.items()}
    n_rows = max(1, block_elements // matrix.shape[-1])
    for first in range(0, len(matrix), n_rows):
        rows = slice(first, first + n_rows)
        for name, part in quantize(matrix[rows]).parts.items():
            parts[name][rows] = part
    return Weight(outline.scheme, shape, parts)


_STRETCHES = (1.0, 0.93, 0.86, 0.79, 0.72)
"""What either end of a group's range is multiplied with: further in, large elements are cut off and that costs more."""


def search_grid(groups: Tensor, importance: Tensor, scheme: QuantizedScheme) -> Grid:
    """The best grid found for groups [out, n_groups, group_size] float32, of those that the scheme can store.

    importance: of each element, not negative, in a shape that goes with that of the groups
    Raises CorruptError where a group holds NaN or infinity.
    """
    low, high = ranges(groups)
    best = scheme.grid(low, high)
    error = grid_error(groups, best, importance)
    for low_stretch, high_stretch in product(_STRETCHES, repeat=2):
        rough = scheme.grid(low * low_stretch, high * high_stretch)
        best, error = _better(best, error, _refitted(groups, rough, importance), groups, importance)
    return best


def magnitude_importance(groups: Tensor) -> Tensor:
    """How much elements matter where nothing is known of their inputs: sqrt(w^2 + mean w^2), of the groups' shape.

    A model leans on its large weights: cutting them off costs more than their squared error says.
    """
    squares = groups.square()
    return (squares + squares.mean(dim=-1, keepdim=True)).sqrt_()


def grid_error(groups: Tensor, grid: Grid, importance: Tensor) -> Tensor:
    """The weighted squared error of each group on a grid, [out, n_groups] float32."""
    return grid.values(grid.codes(groups)).sub_(groups).square_().mul_(importance).sum(dim=-1)


def _better(best: Grid, error: Tensor, other: Grid, groups: Tensor, importance: Tensor) -> tuple[Grid, Tensor]:
    """Of two grids the better one for each group, with its error."""
    of_other = grid_error(groups, other, importance)
    is_better = of_other < error  # an overflow gives NaN, which is not
    scales = torch.where(is_better, other.scales, best.scales)
    zeros = torch.where(is_better, other.zeros, best.zeros)
    return replace(best, scales=scales, zeros=zeros), torch.where(is_better, of_other, error)


def _refitted(groups: Tensor, grid: Grid, importance: Tensor) -> Grid:
    """The same codes with the scale that suits them best, where there is one."""
    steps = (grid.codes(groups) - grid.zeros.unsqueeze(-1)).float()
    weighted = steps * importance
    scales = (weighted * groups).sum(dim=-1) / weighted.mul_(steps).sum(dim=-1)
    limits = torch.finfo(grid.scales.dtype)
    is_usable = (scales > limits.tiny) & (scales < limits.max / (grid.highest - grid.lowest + 1))
    return replace(grid, scales=torch.where(is_usable, scales, grid.scales.float()).to(grid.scales.dtype))
