"""Search: the parameters of each group minimize a weighted squared error over the scheme's candidates.

The error is sum_i h_i (w_i - decode(encode(w_i)))^2, where h_i is the importance of element i. The candidates come from
`GroupFitter.candidates`; the parameters that cover the range (as in `nearest`) are kept if no candidate is better. No
calibration text is needed: the importance is computed from the weights of the group.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from gptfast_cli.core.quantize.quantizers import check_finite, in_groups, in_row_blocks
from gptfast_cli.core.schemes import GroupFitter, GroupParams, QuantizedScheme, Weight, select_params


@dataclass(frozen=True, slots=True)
class Search:
    """Minimizes the weighted squared error of each group independently.

    block_elements: elements per block of rows: it fits in the CPU cache, as it is read once per candidate
    """

    block_elements: int = 1 << 18

    def quantize(self, matrix: Tensor, scheme: QuantizedScheme, group_size: int | None) -> Weight:
        fitter = scheme.fitter(matrix)

        def quantize(rows: slice) -> Weight:
            groups = in_groups(matrix[rows], group_size)
            params = search_params(groups, magnitude_importance(groups), fitter)
            return scheme.pack(params.encode(groups), params, matrix.shape[1])

        meta_weight = scheme.meta_weight(matrix.shape, group_size)
        return in_row_blocks(meta_weight, quantize, device=matrix.device, block_elements=self.block_elements)


def search_params(groups: Tensor, importance: Tensor, fitter: GroupFitter) -> GroupParams:
    """The parameters with the lowest weighted error for groups [out, n_groups, group_size] float32.

    importance: h_i >= 0 of each element; broadcasts to the shape of `groups`
    Raises CorruptError for NaN or infinity.
    """
    check_finite(groups)
    best = fitter.fit(groups)
    error = weighted_error(groups, best, importance)
    for params in fitter.candidates(groups, importance):
        candidate_error = weighted_error(groups, params, importance)
        is_better = candidate_error < error  # False for NaN (overflow)
        best = select_params(is_better, params, best)
        error = torch.where(is_better, candidate_error, error)
    return best


def magnitude_importance(groups: Tensor) -> Tensor:
    """Importance without calibration: h_i = sqrt(w_i^2 + mean(w^2)) within each group, of the groups' shape.

    Large weights count more: clipping them increases the loss more than their squared error suggests.
    """
    squares = groups.square()
    return (squares + squares.mean(dim=-1, keepdim=True)).sqrt_()


def weighted_error(groups: Tensor, params: GroupParams, importance: Tensor) -> Tensor:
    """Weighted squared error of each group, [out, n_groups] float32."""
    return params.decode(params.encode(groups)).sub_(groups).square_().mul_(importance).sum(dim=-1)


PLUG = Search()
