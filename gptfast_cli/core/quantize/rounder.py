"""A rounding on its way through a model's matrices, each told what it is multiplied with where that is asked for."""

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
"""The rounding of matrices whose inputs are not known well enough."""


_ROWS = 512
"""Rows whose outputs are enough to tell the error of a matrix."""


@dataclass(frozen=True, slots=True)
class OutputError:
    """What rounding did to the outputs of a matrix on the calibration text.

    relative: root of the squared error over the squared outputs
    fallback: why it was rounded by search; None where it was not
    """

    name: str
    relative: float
    fallback: str | None


class Rounder:
    """Rounds matrices in reading order."""

    def __init__(self, rounding: Quantizer, calibration: Calibration | None, compensation: Compensation) -> None:
        """`calibration` goes with a calibrated rounding; it is for the caller to make it enter and leave blocks."""
        self.calibration = calibration
        self._rounding, self._compensation = rounding, compensation
        self._errors: list[OutputError] = []

    def quantize(self, name: str, matrix: Tensor, storage: Storage) -> Weight:
        """A matrix as it is going to be stored; raises CorruptError where it holds NaN or infinity."""
        weight = self._quantize(name, matrix, storage)
        if self.calibration is not None:
            self.calibration.replace(name, weight)
        return weight

    def take_errors(self) -> list[OutputError]:
        """Of the matrices since this was last asked whose inputs are known."""
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
    """How far outputs are off as a share of their size: root of tr((W - Q) H (W - Q)^T) / tr(W H W^T), of some rows."""
    rows = slice(None, None, -(-len(matrix) // _ROWS))
    original = matrix[rows].to(inputs.moments.device, torch.float32)
    found = schemes[weight.scheme].dense(weight.row_block(rows), torch.float32)
    outputs, errors = (((each @ inputs.moments) * each).sum() for each in (original, found - original))
    return float((errors / outputs.clamp(min=torch.finfo(torch.float32).tiny)).clamp(min=0).sqrt())
