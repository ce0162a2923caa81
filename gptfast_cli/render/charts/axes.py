"""Scales and axes: where a value lies on the sheet, and the lines and numbers that let it be read back."""

import math
from dataclasses import dataclass

from gptfast_cli.render.charts.canvas import text
from gptfast_cli.render.markup import Element, tag


@dataclass(frozen=True, slots=True)
class Scale:
    """A straight scale from values (low, high) to pixels (start, end)."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """The pixel of a value; one outside of the scale stays at its edge."""
        inside = min(max(value, self.low), self.high)
        return self.start + (inside - self.low) / (self.high - self.low) * (self.end - self.start)


@dataclass(frozen=True, slots=True)
class Axis:
    """A scale, what it measures, and the values written beside it."""

    scale: Scale
    label: str
    ticks: tuple[float, ...]
    decimals: int = 0


def round_axis(label: str, values: list[float], start: float, end: float, n_steps: int = 5) -> Axis:
    """An axis that begins and ends at round numbers around all the values."""
    low, high = min(values), max(values)
    if high - low < 1e-6 * max(1.0, abs(high)):  # a single value still needs a scale
        low, high = low - 0.1, high + 0.1
    step = round_step(high - low, n_steps)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = tuple(n * step for n in range(first, last + 1))
    return Axis(Scale(ticks[0], ticks[-1], start, end), label, ticks, max(0, -math.floor(math.log10(step) + 1e-9)))


def round_step(span: float, n_steps: int) -> float:
    """The smallest of 1, 2, 5 times a power of ten that covers a span in that many steps."""
    power = 10.0 ** math.floor(math.log10(span / n_steps))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor * n_steps >= span * (1 - 1e-9))


def whole_axis(label: str, values: list[int], start: float, end: float) -> Axis:
    """An axis of whole numbers, half a step wider than they are; every second is named where there are many."""
    first, last = min(values), max(values)
    return Axis(
        Scale(first - 0.5, last + 0.5, start, end), label, tuple(range(first, last + 1, 1 + (last - first) // 10))
    )


def frame(x: Axis, y: Axis) -> Element:
    """Rules across for y, numbers for both, and what they are: y above its numbers, x below."""
    left, right, bottom = x.scale.start, x.scale.end, y.scale.start
    rules = [tag("line", x1=left, x2=right, y1=y.scale(t), y2=y.scale(t), class_="rule") for t in y.ticks]
    return tag(
        "g",
        *rules,
        *(text(f"{t:.{y.decimals}f}", left - 6, y.scale(t) + 4, "tick", "end") for t in y.ticks),
        *(text(f"{t:.{x.decimals}f}", x.scale(t), bottom + 16, "tick", "middle") for t in x.ticks),
        text(x.label, (left + right) / 2, bottom + 33, "axis", "middle"),
        text(y.label, 0, y.scale.end - 28, "axis"),
        aria_hidden="true",
    )
