"""Round to nearest (RTN): the parameters of each group cover its range, and each weight gets the nearest code."""

from dataclasses import dataclass

from torch import Tensor

from gptfast_cli.core.quantize.quantizers import check_finite, in_groups, in_row_blocks
from gptfast_cli.core.schemes import QuantizedScheme, Weight


@dataclass(frozen=True, slots=True)
class Nearest:
    """Rounds to the nearest code, with the scale already rounded to its stored dtype.

    block_elements: elements per block of rows: bounds temporary memory
    """

    block_elements: int = 1 << 21

    def quantize(self, matrix: Tensor, scheme: QuantizedScheme, group_size: int | None) -> Weight:
        fitter = scheme.fitter(matrix)

        def quantize(rows: slice) -> Weight:
            groups = in_groups(matrix[rows], group_size)
            check_finite(groups)
            params = fitter.fit(groups)
            return scheme.pack(params.encode(groups), params, matrix.shape[1])

        meta_weight = scheme.meta_weight(matrix.shape, group_size)
        return in_row_blocks(meta_weight, quantize, device=matrix.device, block_elements=self.block_elements)


PLUG = Nearest()
