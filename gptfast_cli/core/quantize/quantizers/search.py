"""Rounding by search: the grid of each group is the best of many for its own elements, and each code is the nearest.

It needs no text: how much an element of a group matters is told by its size alone.
"""

from torch import Tensor

from gptfast_cli.core.quantize.grid import in_groups, in_row_blocks, magnitude_importance, search_grid
from gptfast_cli.core.schemes import QuantizedScheme, Weight

_BLOCK_ELEMENTS = 1 << 18
"""Elements that are worked on at a time: few enough to stay in a cache, as each is looked at many times."""


class Search:
    """See Rounding."""

    def quantize(self, matrix: Tensor, scheme: QuantizedScheme, group_size: int | None) -> Weight:
        """See Rounding."""

        def quantize(rows: Tensor) -> Weight:
            groups = in_groups(rows, group_size)
            grid = search_grid(groups, magnitude_importance(groups), scheme)
            return scheme.pack(grid.codes(groups), grid, rows.shape[-1])

        return in_row_blocks(matrix, scheme, group_size, quantize, block_elements=_BLOCK_ELEMENTS)


PLUG = Search()
