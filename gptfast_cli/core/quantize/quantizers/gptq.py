"""GPTQ: columns are quantized one at a time, and the error of each is compensated in the columns that follow.

It minimizes the output error tr((W - Q) H (W - Q)^T), where H holds the second moments of the inputs. After column j
has been quantized, the optimal update of each later column k is (Frantar et al. 2022, arXiv:2210.17323, equations 2
and 3 in the Cholesky form of section 3.3)

    W[:, k] -= (W[:, j] - Q[:, j]) / U[j, j] * U[j, k]     with H^-1 = U^T U, U upper triangular.

Order ("act-order" that keeps groups contiguous): groups by the largest diagonal entry of H among their columns,
descending; within a group, columns by their diagonal entry. So the most important columns are quantized while most
other columns are left to compensate. The parameters of a group are searched when its first column is reached, on the
weights as updated so far (their range may differ from that of the original weights); the importance of an element is
the diagonal entry of its column.

Damping: `damping` * mean(diag(H)) is added to the diagonal; if the Cholesky factorization fails, damping is multiplied
by 10 and it is tried again. Columns whose inputs are all zero are thereby rounded to nearest.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from gptfast_cli.core.quantize.quantizers import (
    Compensation,
    Inputs,
    Quantizer,
    UnusableInputsError,
    check_finite,
    in_row_blocks,
)
from gptfast_cli.core.quantize.quantizers.search import PLUG as SEARCH
from gptfast_cli.core.quantize.quantizers.search import search_params
from gptfast_cli.core.schemes import GroupFitter, GroupParams, QuantizedScheme, Weight, concat_params

_LARGEST_DAMPING = 10.0

TOKENS_PER_COLUMN = 4
"""Calibration tokens required per column; with fewer GPTQ overfits. Mean KLD of the bundled models at int4 on held-out
text, compared with round-to-nearest: higher with 2 tokens per column, a third lower with 4."""


@dataclass(frozen=True, slots=True)
class Gptq:
    """GPTQ; falls back to `search` for matrices without calibration inputs.

    block_elements: elements per block of rows: large enough that operations on one column are not dominated by overhead
    """

    block_elements: int = 1 << 23

    def quantize(self, matrix: Tensor, scheme: QuantizedScheme, group_size: int | None) -> Weight:
        return SEARCH.quantize(matrix, scheme, group_size)

    def calibrated(self, inputs: Inputs, compensation: Compensation) -> Quantizer:
        return _CalibratedGptq(inputs, compensation, self.block_elements)


@dataclass(frozen=True, slots=True)
class _CalibratedGptq:
    inputs: Inputs
    compensation: Compensation
    block_elements: int

    def quantize(self, matrix: Tensor, scheme: QuantizedScheme, group_size: int | None) -> Weight:
        check_finite(matrix)  # a NaN would spread to all later columns
        if self.inputs.n_tokens < TOKENS_PER_COLUMN * matrix.shape[-1]:
            raise UnusableInputsError(f"only {self.inputs.n_tokens} tokens reached its {matrix.shape[-1]} columns")
        order = _column_order(self.inputs, group_size or matrix.shape[-1], damping=self.compensation.damping)
        on_device = matrix.to(self.inputs.moments.device)
        fitter = scheme.fitter(on_device)

        def quantize(rows: slice) -> Weight:
            codes, params = _quantize(on_device[rows], fitter, order, block_size=self.compensation.block_size)
            return scheme.pack(_whole_groups(codes, params, order.group_size), params, matrix.shape[1])

        meta_weight = scheme.meta_weight(matrix.shape, group_size)
        return in_row_blocks(meta_weight, quantize, device=on_device.device, block_elements=self.block_elements)


@dataclass(frozen=True, slots=True)
class _ColumnOrder:
    """The order in which columns are quantized, and the Cholesky factor of H^-1 in that order.

    group_size: columns per group; the last group of a row may have fewer
    order:      [in_features] int64, a permutation of the columns
    groups:     {position of the group's first column in `order`: (index of the group in a row, its size)}
    factor:     [in_features, in_features] float32, U for H permuted by `order`
    importance: [in_features] float32, the damped diagonal of H permuted by `order`
    """

    group_size: int
    order: Tensor
    groups: Mapping[int, tuple[int, int]]
    factor: Tensor
    importance: Tensor


def _column_order(inputs: Inputs, group_size: int, *, damping: float) -> _ColumnOrder:
    diagonal = inputs.moments.diagonal()
    cut = torch.split(torch.arange(len(diagonal), device=diagonal.device), group_size)
    groups = [columns[diagonal[columns].argsort(descending=True, stable=True)] for columns in cut]
    largest = torch.stack([diagonal[columns[0]] for columns in groups])
    numbers = largest.argsort(descending=True, stable=True).tolist()
    begins = accumulate((len(groups[number]) for number in numbers[:-1]), initial=0)
    order = torch.cat([groups[number] for number in numbers])
    return _ColumnOrder(
        group_size,
        order,
        {begin: (number, len(groups[number])) for begin, number in zip(begins, numbers, strict=True)},
        inverse_factor(inputs.moments, order, damping),
        diagonal[order] + damping * diagonal.mean(),
    )


def inverse_factor(moments: Tensor, order: Tensor, damping: float, *, n_columns: int = 512) -> Tensor:
    """Upper triangular U with H^-1 = U^T U, [n, n]; H is the damped moments, permuted by `order`.

    H^-1 is never computed: reversing rows and columns of H, factorizing and reversing back gives an upper triangular R
    with H = R R^T, so U = R^-1. All steps are in place: one [n, n] matrix is allocated.

    n_columns: columns of the inverse computed per solve

    Raises UnusableInputsError if the factorization fails even with damping 10.
    """
    mean, reverse = moments.diagonal().mean(), order.flip(0)
    failed_at = torch.empty((), dtype=torch.int32, device=moments.device)
    while damping <= _LARGEST_DAMPING:
        factor = moments[reverse, reverse.unsqueeze(1)].t()  # column-major, as LAPACK requires: otherwise a copy
        factor.diagonal().add_(damping * mean)
        torch.linalg.cholesky_ex(factor, out=(factor, failed_at))
        if int(failed_at) == 0:
            _reverse(factor.t())
            _invert(factor, n_columns)
            low, high = factor.t().aminmax()  # NaN propagates
            if bool(low.isfinite() & high.isfinite()):
                return factor
        del factor  # before the next one is allocated
        damping *= 10
    raise UnusableInputsError("the Hessian of its inputs cannot be inverted")


def _reverse(matrix: Tensor) -> None:
    """Reverse the order of rows and of columns, in place."""
    last = len(matrix) - 1
    for row in range(last // 2 + 1):
        matrix[row], matrix[last - row] = matrix[last - row].flip(0), matrix[row].flip(0)


def _invert(upper: Tensor, n_columns: int) -> None:
    """Invert an upper triangular matrix [n, n] in place, `n_columns` columns at a time, from last to first.

    A column of the inverse is zero below the diagonal, so the later columns, already overwritten, only meet zeros.
    """
    for first in reversed(range(0, len(upper), n_columns)):
        columns = upper.new_zeros(len(upper), min(n_columns, len(upper) - first))
        columns[first:].fill_diagonal_(1)
        torch.linalg.solve_triangular(upper, columns, upper=True, out=columns)
        upper[:, first : first + n_columns] = columns


def _quantize(
    matrix: Tensor, fitter: GroupFitter, order: _ColumnOrder, *, block_size: int
) -> tuple[Tensor, GroupParams]:
    """Codes [out_features, in_features] int8 and group parameters of a matrix [out_features, in_features]."""
    columns = matrix.float().t()[order.order]  # [in_features, out_features]: columns are contiguous
    codes = torch.empty(columns.shape, dtype=torch.int8, device=columns.device)
    params_of: dict[int, GroupParams] = {}
    for begin, end in _blocks([size for _, size in order.groups.values()], block_size):
        errors = torch.empty_like(columns[begin:end])
        factor = order.factor[begin:end].contiguous()  # read row by row
        for at in range(begin, end):
            if at in order.groups:
                number, size = order.groups[at]
                group = columns[at : at + size].t().unsqueeze(1).contiguous()  # [out_features, 1, size]
                params = params_of[number] = search_params(group, order.importance[at : at + size], fitter)
            column_codes = params.encode(columns[at].view(-1, 1, 1))
            codes[at] = column_codes.flatten()
            errors[at - begin] = (columns[at] - params.decode(column_codes).flatten()).div_(factor[at - begin, at])
            columns[at + 1 : end].addr_(factor[at - begin, at + 1 : end], errors[at - begin], alpha=-1)
        # the errors of the block are applied to all later columns in one product
        columns[end:].addmm_(factor[:, end:].t(), errors, alpha=-1)
    in_place = torch.empty_like(codes).index_copy_(0, order.order, codes).t()
    return in_place, concat_params([params_of[number] for number in range(len(params_of))])


def _whole_groups(codes: Tensor, params: GroupParams, group_size: int) -> Tensor:
    """Codes [out, in_features] as [out, n_groups, group_size], the last group padded with the code of 0.0."""
    out_features, in_features = codes.shape
    n_groups = -(-in_features // group_size)
    zero = params.encode(torch.zeros(out_features, n_groups, 1, device=codes.device))[:, -1]  # [out_features, 1]
    padding = zero.expand(-1, n_groups * group_size - in_features)
    return torch.unflatten(torch.cat([codes, padding], dim=1), 1, (-1, group_size))


def _blocks(sizes: Iterable[int], block_size: int) -> Iterator[tuple[int, int]]:
    """Column ranges of lazy updates: some whole groups, or part of a group that is larger than a block."""
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
