"""Quantizers: how the codes and group parameters of a matrix are chosen; each works with every quantized scheme.

A scheme provides a `GroupFitter` (the parameters that it can store) and `GroupParams` (encode, decode).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F  # noqa: N812  (the usual name)
from torch import Tensor

from gptfast_cli.core.errors import CorruptError
from gptfast_cli.core.registry import Plugs
from gptfast_cli.core.schemes import QuantizedScheme, Weight


class Quantizer(Protocol):
    """Chooses the codes and group parameters of a matrix."""

    def quantize(self, matrix: Tensor, scheme: QuantizedScheme, group_size: int | None) -> Weight:
        """Quantize a floating-point matrix [out_features, in_features].

        `group_size` is one that the scheme supports; None for a scheme without groups. Raises CorruptError for NaN or
        infinity.
        """
        ...


@dataclass(frozen=True, slots=True)
class Inputs:
    """Second moments of a matrix's inputs on the calibration text.

    moments:  [in_features, in_features] float32, H = mean of x x^T over the tokens fed to the matrix
    n_tokens: number of these tokens
    """

    moments: Tensor
    n_tokens: int


@dataclass(frozen=True, slots=True)
class Compensation:
    """Options of GPTQ.

    damping:    damping * mean(diag(H)) is added to the diagonal of H
    block_size: columns whose errors are applied to all later columns together, in one product
    """

    damping: float = 0.01
    block_size: int = 128


@runtime_checkable
class CalibratedQuantizer(Quantizer, Protocol):
    """A quantizer that uses second moments of the inputs; without them its `quantize` falls back to `search`."""

    def calibrated(self, inputs: Inputs, compensation: Compensation) -> Quantizer:
        """The quantizer for matrices with these inputs.

        Its `quantize` raises UnusableInputsError for too few tokens or moments that cannot be inverted.
        """
        ...


class UnusableInputsError(Exception):
    """Calibration inputs that a quantizer cannot use; the message is the reason."""


quantizers: Plugs[Quantizer] = Plugs(__name__)


def in_groups(matrix: Tensor, group_size: int | None) -> Tensor:
    """A matrix [out, in] as groups [out, n_groups, group_size] float32, the last group of a row zero-padded.

    `group_size` None: one group per row.
    """
    size = group_size or matrix.shape[-1]
    padded = F.pad(matrix.float(), (0, -matrix.shape[-1] % size))
    return torch.unflatten(padded, -1, (-1, size))


def check_finite(values: Tensor) -> None:
    """Raise CorruptError on NaN and infinity."""
    low, high = values.aminmax()  # NaN propagates
    if not bool(low.isfinite() & high.isfinite()):
        raise CorruptError(
            "A weight contains NaN or infinite values.",
            "The model is damaged: download it again, or report it to its authors.",
        )


def in_row_blocks(
    meta_weight: Weight, make: Callable[[slice], Weight], *, device: torch.device, block_elements: int
) -> Weight:
    """A quantized matrix like `meta_weight`, made one block of rows at a time, to bound temporary memory.

    make:           the weight of these rows; their slice ends within the matrix
    block_elements: elements per block; a block has at least one row
    """
    out_features, in_features = meta_weight.shape
    parts = {name: torch.empty_like(part, device=device) for name, part in meta_weight.parts.items()}
    n_rows = max(1, block_elements // in_features)
    for first in range(0, out_features, n_rows):
        rows = slice(first, min(first + n_rows, out_features))
        for name, part in make(rows).parts.items():
            parts[name][rows] = part
    return Weight(meta_weight.scheme, meta_weight.shape, parts)
