"""Quantizers: how codes and group params are chosen for a matrix. One file each; any works with any quantised scheme.

A quantizer asks a scheme for its `GroupFitter` (which params can be stored) and its `GroupParams` (encode, decode).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F  # noqa: N812  (the name that everyone knows)
from torch import Tensor

from gptfast_cli.core.errors import CorruptError
from gptfast_cli.core.registry import Plugs
from gptfast_cli.core.schemes import QuantizedScheme, Weight


class Quantizer(Protocol):
    """Chooses the codes and params of a matrix."""

    def quantize(self, matrix: Tensor, scheme: QuantizedScheme, group_size: int | None) -> Weight:
        """Quantise a floating matrix [out_features, in_features].

        `group_size` is one of the scheme's, or None if it has none. Raises CorruptError if the matrix holds NaN
        or infinity.
        """
        ...


@dataclass(frozen=True, slots=True)
class Inputs:
    """Second moments of a matrix's inputs on the calibration text.

    moments:  [in_features, in_features] float32, H = mean of x x^T over the tokens that reached the matrix
    n_tokens: number of those tokens
    """

    moments: Tensor
    n_tokens: int


@dataclass(frozen=True, slots=True)
class Compensation:
    """Settings of GPTQ.

    damping:    share of the mean of H's diagonal that is added to the diagonal
    block_size: columns after which their errors are applied to all later columns, in one product
    """

    damping: float = 0.01
    block_size: int = 128


@runtime_checkable
class CalibratedQuantizer(Quantizer, Protocol):
    """A quantizer that uses the inputs of a matrix; without them its `quantize` is that of `search`."""

    def calibrated(self, inputs: Inputs, compensation: Compensation) -> Quantizer:
        """The quantizer for matrices with these inputs.

        Its `quantize` raises UnusableInputsError if the inputs are too few or their moments cannot be inverted.
        """
        ...


class UnusableInputsError(Exception):
    """Inputs that a calibrated quantizer cannot use; the message is the reason."""


quantizers: Plugs[Quantizer] = Plugs(__name__)


def in_groups(matrix: Tensor, group_size: int | None) -> Tensor:
    """A matrix [out, in] as groups [out, n_groups, group_size] float32, the last one padded with zeros.

    Where `group_size` is None a whole row is a group.
    """
    size = group_size or matrix.shape[-1]
    padded = F.pad(matrix.float(), (0, -matrix.shape[-1] % size))
    return torch.unflatten(padded, -1, (-1, size))


def check_finite(values: Tensor) -> None:
    """Raise CorruptError on NaN and infinity."""
    low, high = values.aminmax()  # NaN propagates
    if not bool(low.isfinite() & high.isfinite()):
        raise CorruptError(
            "A weight to be quantised holds NaN or infinite values.",
            "The model is damaged: download it again, or report it to its authors.",
        )


def in_row_blocks(
    matrix: Tensor,
    scheme: QuantizedScheme,
    group_size: int | None,
    quantize: Callable[[Tensor], Weight],
    *,
    block_elements: int,
) -> Weight:
    """Quantise a matrix with `quantize`, a block of rows at a time, which bounds the temporary memory.

    block_elements: elements of a block; at least one row
    """
    shape = (matrix.shape[0], matrix.shape[1])
    meta_weight = scheme.meta_weight(shape, group_size)
    parts = {name: torch.empty_like(part, device=matrix.device) for name, part in meta_weight.parts.items()}
    n_rows = max(1, block_elements // matrix.shape[-1])
    for first in range(0, len(matrix), n_rows):
        rows = slice(first, first + n_rows)
        for name, part in quantize(matrix[rows]).parts.items():
            parts[name][rows] = part
    return Weight(meta_weight.scheme, shape, parts)
