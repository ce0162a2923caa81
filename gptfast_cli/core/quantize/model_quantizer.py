"""Applies a quantizer to a model's matrices in reading order, with the calibrated inputs of each where it uses them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from gptfast_cli.core.quantize.allocation import Storage
from gptfast_cli.core.quantize.calibration import Calibration
from gptfast_cli.core.quantize.quantizers import (
    CalibratedQuantizer,
    Compensation,
    Inputs,
    Quantizer,
    UnusableInputsError,
    quantizers,
)
from gptfast_cli.core.schemes import Weight, quantized, schemes

FALLBACK = "search"
"""The quantizer of matrices whose inputs are too few or unusable."""

_ROWS = 512
"""Rows of a matrix whose outputs are compared to estimate its error."""


@dataclass(frozen=True, slots=True)
class OutputError:
    """Error of a matrix's outputs on the calibration text, caused by quantization.

    relative: sqrt(sum of squared errors / sum of squared outputs)
    fallback: why FALLBACK was used; None if it was not
    """

    name: str
    relative: float
    fallback: str | None


class ModelQuantizer:
    """Quantizes matrices in reading order."""

    def __init__(self, rounding: Quantizer, calibration: Calibration | None, compensation: Compensation) -> None:
        """`calibration` is for a calibrated quantizer; the caller calls its `enter` and `leave` around each block."""
        self.calibration = calibration
        self._rounding, self._compensation = rounding, compensation
        self._errors: list[OutputError] = []

    def quantize(self, name: str, matrix: Tensor, storage: Storage) -> Weight:
        """Quantize a matrix; raises CorruptError if it holds NaN or infinity."""
        weight = self._quantize(name, matrix, storage)
        if self.calibration is not None:
            self.calibration.replace(name, weight)
        return weight

    def take_errors(self) -> list[OutputError]:
        """Output errors of the calibrated matrices since the last call."""
        errors, self._errors = self._errors, []
        return errors

    def _quantize(self, name: str, matrix: Tensor, storage: Storage) -> Weight:
        scheme, size, rounding = quantized(storage.scheme), storage.group_size, self._rounding
        inputs = None if self.calibration is None else self.calibration.inputs(name)
        if inputs is None or not isinstance(rounding, CalibratedQuantizer):
            return rounding.quantize(matrix, scheme, size)
        fallback = None
        try:
            weight = rounding.calibrated(inputs, self._compensation).quantize(matrix, scheme, size)
        except UnusableInputsError as error:
            fallback = str(error)
            weight = quantizers[FALLBACK].quantize(matrix, scheme, size)
        self._errors.append(OutputError(name, output_error(matrix, weight, inputs), fallback))
        return weight


def output_error(matrix: Tensor, weight: Weight, inputs: Inputs) -> float:
    """sqrt(tr((W - Q) H (W - Q)^T) / tr(W H W^T)), estimated on about _ROWS rows."""
    rows = slice(None, None, -(-len(matrix) // _ROWS))
    original = matrix[rows].to(inputs.moments.device, torch.float32)
    found = schemes[weight.scheme].dense(weight.row_block(rows), torch.float32)
    outputs, errors = (((each @ inputs.moments) * each).sum() for each in (original, found - original))
    return float((errors / outputs.clamp(min=torch.finfo(torch.float32).tiny)).clamp(min=0).sqrt())
