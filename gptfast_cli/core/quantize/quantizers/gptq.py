"""Rounding by GPTQ: columns are rounded one after the other, and those still to come make good for what each one cost.

What counts is the error of a matrix's outputs, tr((W - Q) H (W - Q)^T), with H the moments of its inputs. Where column
j has been rounded, the best that the columns after it can do is (Frantar et al. 2022, arXiv:2210.17323, equations 2
and 3 in the form of its section 3.3)

    W[:, k] -= (W[:, j] - Q[:, j]) / U[j, j] * U[j, k]     with H^-1 = U^T U, U upper triangular.

Order: the elements that a grid covers are neighbours in the stored row and stay so. Groups come in the order of the
largest moment of their columns, and so do the columns inside of a group: what matters most is rounded first, when the
most columns are left to make good for it. A group's grid is searched for when its first column's turn comes, among the
weights as all groups before it have left them, and not as they once were; so its scales are never stale, which a grid
that is fixed at the beginning would make them. Each element counts there in proportion to the moment of its column.

Damping: `damping` times the mean of H's diagonal is added to the diagonal, ten times as much for each time that the
factor still does not exist. Columns without inputs are thereby rounded to nearest.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor

from gptfast_cli.core.quantize.grid import in_row_blocks, ranges, search_grid
from gptfast_cli.core.quantize.quantizers import (
    Compensation,
    Inputs,
    Quantizer,
    UnusableInputsError,
)
from gptfast_cli.core.quantize.quantizers.search import PLUG as SEARCH
from gptfast_cli.core.schemes import Grid, QuantizedScheme, Weight

_BLOCK_ELEMENTS = 1 << 23
"""Elements that are worked on at a time: enough that a column of them is worth an operation."""

_COLUMNS = 512
"""Columns of a matrix that are inverted at a time."""

_LARGEST_DAMPING = 10.0

TOKENS_PER_COLUMN = 4
"""From fewer it would learn what is particular to the text: at 2 it lost more on other texts than rounding to nearest
did, at 4 a third less (mean KLD of bundled models at int4)."""


class Gptq:
    """See CalibratedRounding."""

    def quantize(self, matrix: Tensor, scheme: QuantizedScheme, group_size: int | None) -> Weight:
        """See CalibratedRounding."""
        return SEARCH.quantize(matrix, scheme, group_size)

    def given(self, inputs: Inputs, compensation: Compensation) -> Quantizer:
        """See CalibratedRounding."""
        return _CalibratedGptq(inputs, compensation)


@dataclass(frozen=True, slots=True)
class _CalibratedGptq:
    """GPTQ of matrices that have these inputs."""

    inputs: Inputs
    compensation: Compensation

    def quantize(self, matrix: Tensor, scheme: QuantizedScheme, group_size: int | None) -> Weight:
        """See CalibratedRounding."""
        ranges(matrix)  # refuses NaN and infinity where they are, before they get into everything
        if self.inputs.n_tokens < TOKENS_PER_COLUMN * matrix.shape[-1]:
            raise UnusableInputsError(f"only {self.inputs.n_tokens} tokens reached its {matrix.shape[-1]} columns")
        turns = _turns(self.inputs, group_size or matrix.shape[-1], damping=self.compensation.damping)

        def quantize(rows: Tensor) -> Weight:
            return _quantize(rows, scheme, turns, block_size=self.compensation.block_size)

        on_device = matrix.to(self.inputs.moments.device)
        return in_row_blocks(on_device, scheme, group_size, quantize, block_elements=_BLOCK_ELEMENTS)


@dataclass(frozen=True, slots=True)
class _Turns:
    """In which order the columns have their turn, and what is needed of H for it.

    group_size: columns of a group; the last one in a row may have fewer
    order:      [in_features], the columns
    groups:     for each group, by the place in `order` where its columns begin: its number in a row and its size
    factor:     [in_features, in_features], U of H in that order
    importance: [in_features], the diagonal of H in that order
    """

    group_size: int
    order: Tensor
    groups: Mapping[int, tuple[int, int]]
    factor: Tensor
    importance: Tensor


def _turns(inputs: Inputs, group_size: int, *, damping: float) -> _Turns:
    diagonal = inputs.moments.diagonal()
    cut = torch.split(torch.arange(len(diagonal), device=diagonal.device), group_size)
    groups = [columns[diagonal[columns].argsort(descending=True, stable=True)] for columns in cut]
    largest = torch.stack([diagonal[columns[0]] for columns in groups])
    numbers = largest.argsort(descending=True, stable=True).tolist()
    begins = accumulate((len(groups[number]) for number in numbers[:-1]), initial=0)
    order = torch.cat([groups[number] for number in numbers])
    return _Turns(
        group_size,
        order,
        {begin: (number, len(groups[number])) for begin, number in zip(begins, numbers, strict=True)},
        inverse_factor(inputs.moments, order, damping),
        diagonal[order] + damping * diagonal.mean(),
    )


def inverse_factor(moments: Tensor, order: Tensor, damping: float) -> Tensor:
    """U of H^-1 = U^T U, upper triangular, H being damped moments [n, n] with rows and columns in an order.

    The inverse itself is not made: with the rows and columns of H in reverse, its Cholesky factor is the reverse of an
    upper triangular R with H = R R^T, and U is R^-1. One matrix of this size is held beside the moments, as each step
    writes over what the one before has made. Raises UnusableInputsError where there is no factor.
    """
    mean, reverse = moments.diagonal().mean(), order.flip(0)
    failed_at = torch.empty((), dtype=torch.int32, device=moments.device)
    while damping <= _LARGEST_DAMPING:
        factor = moments[reverse, reverse.unsqueeze(1)].t()  # a column is contiguous: LAPACK would copy anything else
        factor.diagonal().add_(damping * mean)
        torch.linalg.cholesky_ex(factor, out=(factor, failed_at))
        if int(failed_at) == 0:
            _reverse(factor.t())
            _invert(factor)
            low, high = factor.t().aminmax()  # NaN comes through
            if bool(low.isfinite() & high.isfinite()):
                return factor
        del factor  # before the next one is made
        damping *= 10
    raise UnusableInputsError("the moments of its inputs cannot be inverted")


def _reverse(matrix: Tensor) -> None:
    """Bring the rows of a matrix and its columns into their reverse order, in its place."""
    last = len(matrix) - 1
    for row in range(last // 2 + 1):
        matrix[row], matrix[last - row] = matrix[last - row].flip(0), matrix[row].flip(0)


def _invert(upper: Tensor) -> None:
    """Put the inverse of an upper triangular matrix [n, n] in its place, some columns at a time, the last ones first.

    A column of the inverse is zero below the diagonal, so what stands in the place of the columns after it by then is
    multiplied with zeros only.
    """
    for first in reversed(range(0, len(upper), _COLUMNS)):
        columns = upper.new_zeros(len(upper), min(_COLUMNS, len(upper) - first))
        columns[first:].fill_diagonal_(1)
        torch.linalg.solve_triangular(upper, columns, upper=True, out=columns)
        upper[:, first : first + _COLUMNS] = columns


def _quantize(matrix: Tensor, scheme: QuantizedScheme, turns: _Turns, *, block_size: int) -> Weight:
    in_features = matrix.shape[1]
    columns = matrix.float().t()[turns.order]  # [in_features, out_features]: a column is contiguous
    codes = torch.empty(columns.shape, dtype=torch.int8, device=columns.device)
    grids: dict[int, Grid] = {}
    for begin, end in _blocks([size for _, size in turns.groups.values()], block_size):
        errors = torch.empty_like(columns[begin:end])
        factor = turns.factor[begin:end].contiguous()  # a row is read at a time
        for at in range(begin, end):
            if at in turns.groups:
                number, size = turns.groups[at]
                group = columns[at : at + size].t().unsqueeze(1).contiguous()  # [out_features, 1, size]
                grid = grids[number] = search_grid(group, turns.importance[at : at + size], scheme)
            of_column = grid.codes(columns[at].view(-1, 1, 1))
            codes[at] = of_column.flatten()
            errors[at - begin] = (columns[at] - grid.values(of_column).flatten()).div_(factor[at - begin, at])
            columns[at + 1 : end].addr_(factor[at - begin, at + 1 : end], errors[at - begin], alpha=-1)
        # what follows the block gets all of its errors at once, in one product
        columns[end:].addmm_(factor[:, end:].t(), errors, alpha=-1)
    grid = _side_by_side([grids[number] for number in range(len(grids))])
    in_place = torch.empty_like(codes).index_copy_(0, turns.order, codes).t()
    return scheme.pack(_whole_groups(in_place, grid, turns.group_size), grid, in_features)


def _side_by_side(grids: Sequence[Grid]) -> Grid:
    """The grids of single groups, [out, 1] each, as that of all."""
    scales, zeros = (torch.cat([getattr(grid, name) for grid in grids], dim=1) for name in ("scales", "zeros"))
    return replace(grids[0], scales=scales, zeros=zeros)


def _whole_groups(codes: Tensor, grid: Grid, group_size: int) -> Tensor:
    """Codes [out, in_features] as [out, n_groups, group_size], the last group filled up with its zero point."""
    n_over = -codes.shape[1] % group_size
    filling = grid.zeros[:, -1:].expand(-1, n_over)
    return torch.unflatten(torch.cat([codes, filling], dim=1), 1, (-1, group_size))


def _blocks(sizes: Iterable[int], block_size: int) -> Iterator[tuple[int, int]]:
    """Columns that are finished together: some whole groups, or a piece of one that is larger than a block."""
    begin = end = 0
    for size in sizes:
        if end > begin and end - begin + size > block_size:
            yield begin, end
            begin = end
        end += size
        while end - begin > block_size:
            yield begin, begin + block_size
            begin += block_size
    yield begin, end


PLUG = Gptq()
