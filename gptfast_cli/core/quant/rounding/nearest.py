"""Rounding to nearest: the grid of each group spans its lowest and highest element, and each code is the nearest."""

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
        shape = (matrix.shape[0], matrix.shape[1])
        outline = scheme.outline(shape, group_size)
        weight = Weight(outline.scheme, shape, {name: _empty(part, matrix) for name, part in outline.parts.items()})
        n_rows = max(1, _BLOCK_ELEMENTS // matrix.shape[-1])
        for first in range(0, len(matrix), n_rows):
            rows = slice(first, first + n_rows)
            block = _quantize(matrix[rows], scheme, group_size)
            for name, part in weight.parts.items():
                part[rows] = block.parts[name]
        return weight


def _empty(outline: Tensor, like: Tensor) -> Tensor:
    return torch.empty(outline.shape, dtype=outline.dtype, device=like.device)


def _quantize(matrix: Tensor, scheme: QuantizedScheme, group_size: int | None) -> Weight:
    groups = in_groups(matrix, group_size)
    grid = scheme.grid(*ranges(groups))
    return scheme.pack(grid.codes(groups), grid, matrix.shape[-1])


PLUG = Nearest()
