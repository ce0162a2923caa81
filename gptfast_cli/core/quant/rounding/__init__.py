"""Roundings: how codes and grids are chosen for a matrix. One file each; any goes with any quantised scheme."""

from typing import Protocol

from torch import Tensor

from gptfast_cli.core.formats import QuantizedScheme, Weight
from gptfast_cli.core.registry import Plugs


class Rounding(Protocol):
    """A way to choose grids and codes."""

    def quantize(self, matrix: Tensor, scheme: QuantizedScheme, group_size: int | None) -> Weight:
        """A floating matrix [out_features, in_features] as a weight of the scheme.

        `group_size` is one of the scheme's, or None where it has none. Raises CorruptError where the matrix holds NaN
        or infinity.
        """
        ...


roundings: Plugs[Rounding] = Plugs(__name__)
