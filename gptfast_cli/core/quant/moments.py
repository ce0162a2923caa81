"""The second moments of what a matrix is multiplied with, in float32: GPTQ's Hessian but for a factor of two."""

from collections.abc import Iterator

import torch
from torch import Tensor

from gptfast_cli.core.quant.rounding import Inputs

_TILE = 512
"""Rows of the moments that are computed at once, from the diagonal on: half of a symmetric matrix is enough."""


class Moments:
    """Takes in inputs [..., in_features] as they come."""

    def __init__(self, in_features: int, device: torch.device) -> None:
        self._sums = torch.zeros(in_features, in_features, device=device)
        self._n_tokens = 0

    def add(self, x: Tensor) -> None:
        """Add the inputs of some tokens, of any float dtype."""
        rows = x.reshape(-1, x.shape[-1]).float()
        for tile, onward in self._tiles():
            self._sums[tile, onward].addmm_(rows[:, tile].t(), rows[:, onward])
        self._n_tokens += len(rows)

    def mean(self) -> Inputs:
        """The mean over all tokens so far; of none it is zero. Ends the adding up."""
        for tile, onward in self._tiles():
            self._sums[onward, tile] = self._sums[tile, onward].t().clone()
        return Inputs(self._sums.div_(max(1, self._n_tokens)), self._n_tokens)

    def _tiles(self) -> Iterator[tuple[slice, slice]]:
        """Rows at a time, and the columns from there on."""
        for first in range(0, len(self._sums), _TILE):
            yield slice(first, first + _TILE), slice(first, None)
