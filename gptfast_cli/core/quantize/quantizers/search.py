"""Search: the params of each group are those of least weighted error among the scheme's candidates.

The error of params is sum_i h_i (w_i - decode(encode(w_i)))^2, where h_i is the importance of element i. The candidates
come from the scheme (`GroupFitter.candidates`); params that cover the range are kept where no candidate is better. No
calibration text is needed: the importance of an element is computed from the weights of its group.
"""

import torch
from torch import Tensor

from gptfast_cli.core.quantize.quantizers import check_finite, in_groups, in_row_blocks
from gptfast_cli.core.schemes import GroupFitter, GroupParams, QuantizedScheme, Weight, select_params

_BLOCK_ELEMENTS = 1 << 18
"""Elements of a block of rows: few enough to stay in the CPU's cache, as each is read for every candidate."""


class Search:
    """Least weighted error of each group on its own."""

    def quantize(self, matrix: Tensor, scheme: QuantizedScheme, group_size: int | None) -> Weight:
        fitter = scheme.fitter(matrix)

        def quantize(rows: Tensor) -> Weight:
            groups = in_groups(rows, group_size)
            params = search_params(groups, magnitude_importance(groups), fitter)
            return scheme.pack(params.encode(groups), params, rows.shape[-1])

        return in_row_blocks(matrix, scheme, group_size, quantize, block_elements=_BLOCK_ELEMENTS)


def search_params(groups: Tensor, importance: Tensor, fitter: GroupFitter) -> GroupParams:
    """The params of least weighted error for groups [out, n_groups, group_size] float32.

    importance: of each element, not negative, of a shape that broadcasts to that of the groups
    Raises CorruptError if a group holds NaN or infinity.
    """
    check_finite(groups)
    best = fitter.fit(groups)
    error = weighted_error(groups, best, importance)
    for params in fitter.candidates(groups, importance):
        candidate_error = weighted_error(groups, params, importance)
        is_better = candidate_error < error  # an overflow gives NaN, for which this is False
        best = select_params(is_better, params, best)
        error = torch.where(is_better, candidate_error, error)
    return best


def magnitude_importance(groups: Tensor) -> Tensor:
    """The importance of elements whose inputs are unknown: sqrt(w^2 + mean w^2), of the groups' shape.

    Clipping a large weight harms a model more than its squared error says.
    """
    squares = groups.square()
    return (squares + squares.mean(dim=-1, keepdim=True)).sqrt_()


def weighted_error(groups: Tensor, params: GroupParams, importance: Tensor) -> Tensor:
    """The weighted squared error of each group, [out, n_groups] float32."""
    return params.decode(params.encode(groups)).sub_(groups).square_().mul_(importance).sum(dim=-1)


PLUG = Search()
