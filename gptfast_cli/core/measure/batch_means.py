"""How certain a mean over the tokens of a text is, where tokens that are near one another are alike.

The values are cut, in the order of the text, into a few long batches. The batches' means know little of one another,
so that their spread tells that of the whole mean, and with it Student's t an interval (Schmeiser 1982, "Batch size
effects in the analysis of simulation output": 10 to 30 batches, however many values there are). An error that takes
every token as a witness of its own is too small: a hard passage is hard for many tokens.
"""

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

N_BATCHES: Final = 20
_T: Final = 2.093
"""Student's t at 19 degrees of freedom: 95 % lie within so many standard errors."""


@dataclass(frozen=True, slots=True)
class BatchedMean:
    """A mean and its standard error."""

    value: float
    stderr: float

    @property
    def interval(self) -> Tensor:
        """Its two ends [2] float64: 95 of 100 such intervals hold the mean of all texts of this kind."""
        reach = _T * self.stderr
        return torch.tensor([self.value - reach, self.value + reach], dtype=torch.float64)


def batched_mean(values: Tensor) -> BatchedMean | None:
    """Of values [n] float64 in the order of the text; None where they are too few, or not all finite."""
    if len(values) < N_BATCHES or not values.isfinite().all():
        return None
    value = values.mean()
    spread = sum((len(batch) * (batch.mean() - value)) ** 2 for batch in values.tensor_split(N_BATCHES))
    stderr = (spread * N_BATCHES / (N_BATCHES - 1)) ** 0.5 / len(values)
    return BatchedMean(value.item(), float(stderr))
