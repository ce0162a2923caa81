"""Round to nearest (RTN): the parameters of each group cover its range, and each weight gets the nearest code."""

from torch import Tensor

from gptfast_cli.core.quantize.quantizers import check_finite, in_groups, in_row_blocks
from gptfast_cli.core.schemes import QuantizedScheme, Weight

_BLOCK_ELEMENTS = 1 << 21
"""Elements per block of rows: bounds temporary memory."""


class Nearest:
    """Rounds to the nearest code, with the scale already rounded to its stored dtype."""

    def quantize(self, matrix: Tensor, scheme: QuantizedScheme, group_size: int | None) -> Weight:
        fitter = scheme.fitter(matrix)

        def quantize(rows: Tensor) -> Weight:
            groups = in_groups(rows, group_size)
            check_finite(groups)
            params = fitter.fit(groups)
            return scheme.pack(params.encode(groups), params, rows.shape[-1])

        return in_row_blocks(matrix, scheme, group_size, quantize, block_elements=_BLOCK_ELEMENTS)


PLUG = Nearest()
