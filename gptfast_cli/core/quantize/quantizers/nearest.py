"""Rounding to nearest: the grid of each group spans its lowest and highest element, and each code is the nearest."""

from torch import Tensor

from gptfast_cli.core.quantize.grid import in_groups, in_row_blocks, ranges
from gptfast_cli.core.schemes import QuantizedScheme, Weight

_BLOCK_ELEMENTS = 1 << 21
"""Elements that are worked on at a time: what is held beside the matrix and the weight stays small."""


class Nearest:
    """See Rounding; the scale is chosen and rounded before the codes, which so make good for it."""

    def quantize(self, matrix: Tensor, scheme: QuantizedScheme, group_size: int | None) -> Weight:
        """See Rounding."""

        def quantize(rows: Tensor) -> Weight:
            groups = in_groups(rows, group_size)
            grid = scheme.grid(*ranges(groups))
            return scheme.pack(grid.codes(groups), grid, rows.shape[-1])

        return in_row_blocks(matrix, scheme, group_size, quantize, block_elements=_BLOCK_ELEMENTS)


PLUG = Nearest()
