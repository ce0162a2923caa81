"""Round to nearest: the params of each group cover its range, and each code is that of the nearest value."""

from torch import Tensor

from gptfast_cli.core.quantize.quantizers import check_finite, in_groups, in_row_blocks
from gptfast_cli.core.schemes import QuantizedScheme, Weight

_BLOCK_ELEMENTS = 1 << 21
"""Elements of a block of rows: bounds the memory beside the matrix and the weight."""


class Nearest:
    """Codes are chosen after the scale was rounded to its stored dtype, which corrects for that rounding."""

    def quantize(self, matrix: Tensor, scheme: QuantizedScheme, group_size: int | None) -> Weight:
        fitter = scheme.fitter(matrix)

        def quantize(rows: Tensor) -> Weight:
            groups = in_groups(rows, group_size)
            check_finite(groups)
            params = fitter.fit(groups)
            return scheme.pack(params.encode(groups), params, rows.shape[-1])

        return in_row_blocks(matrix, scheme, group_size, quantize, block_elements=_BLOCK_ELEMENTS)


PLUG = Nearest()
