"""Roundings: how codes and grids are chosen for a matrix. One file each; any goes with any quantised scheme."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from gptfast_cli.core.registry import Plugs
from gptfast_cli.core.schemes import QuantizedScheme, Weight


class Quantizer(Protocol):
    """A way to choose grids and codes."""

    def quantize(self, matrix: Tensor, scheme: QuantizedScheme, group_size: int | None) -> Weight:
        """A floating matrix [out_features, in_features] as a weight of the scheme.

        `group_size` is one of the scheme's, or None where it has none. Raises CorruptError where the matrix holds NaN
        or infinity.
        """
        ...


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a matrix was multiplied with in a text.

    moments:  [in_features, in_features] float32, the mean of x x^T over the tokens that reached the matrix
    n_tokens: how many did
    """

    moments: Tensor
    n_tokens: int


@dataclass(frozen=True, slots=True)
class Compensation:
    """How a calibrated rounding goes about it.

    damping:    what is added to the diagonal of the moments, as a share of its mean
    block_size: columns after which what their errors ask for is passed on to all that follow
    """

    damping: float = 0.01
    block_size: int = 128


@runtime_checkable
class CalibratedQuantizer(Quantizer, Protocol):
    """A rounding that looks at what matrices are multiplied with; without that knowledge it does as `search` does."""

    def given(self, inputs: Inputs, compensation: Compensation) -> Quantizer:
        """The rounding of matrices that are multiplied with such inputs.

        Its `quantize` raises UnusableInputsError where nothing can be learned from them.
        """
        ...


class UnusableInputsError(Exception):
    """Inputs that a rounding can make nothing of; says why."""


quantizers: Plugs[Quantizer] = Plugs(__name__)
