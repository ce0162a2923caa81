"""Rounding to nearest: the grid of each group spans its lowest and highest element, and each code is the nearest."""

from collections.abc import Sequence

import torch
from torch import Tensor

from gptfast_cli.core.formats import QuantizedScheme, Weight
from gptfast_cli.core.quant.groups import in_groups, ranges

_BLOCK_ELEMENTS = 1 << 21
"""Elements that are worked on at a time: what is held beside the matrix and the weight stays small."""


class Nearest:
    """See Rounding; the scale is chosen and rounded before the codes, which so make good for it."""

    def quantize(self, matrix: Tensor, scheme: QuantizedScheme, group_size: int | None) -> Weight:
        """See Rounding."""
        n_rows = max(1, _BLOCK_ELEMENTS // matrix.shape[-1])
        return _stacked([_quantize(rows, scheme, group_size) for rows in torch.split(matrix, n_rows)])


def _quantize(matrix: Tensor, scheme: QuantizedScheme, group_size: int | None) -> Weight:
    groups = in_groups(matrix, group_size)
    grid = scheme.grid(*ranges(groups))
    return scheme.pack(grid.codes(groups), grid, matrix.shape[-1])


def _stacked(blocks: Sequence[Weight]) -> Weight:
    """Blocks of rows as one weight."""
    first = blocks[0]
    shape = (sum(block.shape[0] for block in blocks), *first.shape[1:])
    return Weight(
        first.scheme, shape, {part: torch.cat([block.parts[part] for block in blocks]) for part in first.parts}
    )


PLUG = Nearest()
