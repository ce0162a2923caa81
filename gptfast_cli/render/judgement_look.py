"""How a judgement looks where it is shown: what marks a cell of its tables, how drafts are called, how much is said."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from gptfast_cli.core.drafts.report import Interval
from gptfast_cli.render.numbers import digits

NONE: Final = "-"
"""Stands where there is no number."""


@dataclass(frozen=True, slots=True)
class ReportStyle:
    """A place that shows a judgement.

    names:       what a draft is called in tables; quote: makes any name stand as it is; escape: any sentence
    best:        of a batch size; loss: slower than plain decoding; other: all other cells; each with {} for the number
    bar:         of a share 0..1, where there are bars
    is_detailed: whether columns that are not needed for a choice are shown too
    """

    names: Mapping[str, str]
    quote: Callable[[str], str]
    escape: Callable[[str], str]
    best: str
    loss: str
    other: str
    bar: Callable[[float], str] | None
    is_detailed: bool

    def called(self, draft: str | None) -> str:
        """The draft's name in a table."""
        return NONE if draft is None else self.quote(self.names[draft])

    def marked(self, speedup: float, *, is_best: bool) -> str:
        """A speed-up as a cell of the grid."""
        text = (self.loss if speedup < 1 else "{}").format(digits(speedup))
        if is_best:
            return self.best.format(text)
        return text if speedup < 1 else self.other.format(text)


def ranged(interval: Interval, write: Callable[[float], str] = digits) -> str:
    """A number with the interval that it lies in: `1.71 [1.66, 1.77]`."""
    return f"{write(interval.value)} [{write(interval.low)}, {write(interval.high)}]"


def agreement(alpha: float) -> str:
    """An alpha in three decimals."""
    return f"{alpha:.3f}"
