"""SVG: the canvas, its colours, axes, and labels that do not overlap.

Blue and orange differ to every kind of colour-blind eye; the style sheet gives each class its colour and its ink, in
light and in dark.
"""

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from gptfast_cli.render.markup import Child, Element, tag

WIDTH = 344  # pixels: what a window of 400 has room for, and a third of a wide page


def canvas(label: str, width: float, height: float, *marks: Child | None) -> Element:
    """A picture with a text that stands for it where it is not seen."""
    return tag(
        "svg",
        tag("title", label),
        *marks,
        xmlns="http://www.w3.org/2000/svg",
        role="img",
        aria_label=label,
        viewBox=f"0 0 {width:g} {height:g}",
        width=width,
        height=height,
    )


def text(words: str, x: float, y: float, class_: str = "", anchor: str = "start") -> Element:
    """A line of writing; `anchor` is start, middle or end."""
    return tag("text", words, x=x, y=y, class_=class_ or None, text_anchor=None if anchor == "start" else anchor)


def marked(title: str, *marks: Child | None, class_: str | None = None) -> Element:
    """Marks that tell more under the pointer."""
    return tag("g", tag("title", title), *marks, class_=class_)


def shortened(words: str, limit: int) -> str:
    """A name that has to fit; its middle is left out, for names of models differ at both ends."""
    if len(words) <= limit:
        return words
    head = limit // 2
    return f"{words[:head]}\N{HORIZONTAL ELLIPSIS}{words[len(words) - (limit - head - 1) :]}"


def path(points: list[tuple[float, float]]) -> str:
    """The straight strokes through points, as the `d` of a path."""
    return "M" + "L".join(f"{x:.2f},{y:.2f}" for x, y in points)


EDGES: Final = (1.02, 1.25, 1.6, 2.2)


def shade(speedup: float) -> str:
    """The class of a speed-up: from `loss4` over `even` to `gain4`."""
    side, factor = ("gain", speedup) if speedup >= 1 else ("loss", 1 / max(speedup, 1e-9))
    strength = bisect_right(EDGES, factor)
    return f"{side}{strength}" if strength else "even"


def legend() -> Element:
    """The scale of colours, with the ratios at which they change."""
    width, height = 34, 14
    losses = [f"loss{n}" for n in range(len(EDGES), 0, -1)]
    shades = [*losses, "even", *(f"gain{n}" for n in range(1, len(EDGES) + 1))]
    bounds = [*(1 / edge for edge in reversed(EDGES)), *EDGES]
    return canvas(
        "Colours of speed-ups: orange is slower than plain decoding, grey even, blue faster",
        width * len(shades) + 2,
        34,
        *(tag("rect", x=1 + n * width, y=1, width=width, height=height, class_=s) for n, s in enumerate(shades)),
        *(text(f"{bound:.2f}", 1 + n * width, 29, "tick", "middle") for n, bound in enumerate(bounds, start=1)),
    )


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


LETTER: Final = 6.2
"""Pixels that a letter takes, on the wide side of the mean."""

_HEIGHT: Final = 14


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle on the sheet."""

    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: "Box") -> bool:
        """Whether the two have a spot in common."""
        is_beside = self.right <= other.left or other.right <= self.left
        return not (is_beside or self.bottom <= other.top or other.bottom <= self.top)

    def holds(self, other: "Box") -> bool:
        """Whether the other lies within."""
        is_across = self.left <= other.left and other.right <= self.right
        return is_across and self.top <= other.top and other.bottom <= self.bottom


def placed(names: Sequence[str], points: Sequence[Box], sheet: Box) -> list[Box | None]:
    """A box for each name beside its point, or None where there is no room: the first names choose first."""
    taken = list(points)
    boxes: list[Box | None] = []
    for name, point in zip(names, points, strict=True):
        free = (box for box in _around(point, LETTER * len(name)) if sheet.holds(box))
        box = next((box for box in free if not any(box.meets(other) for other in taken)), None)
        boxes.append(box)
        taken += [box] if box is not None else []
    return boxes


def _around(point: Box, width: float) -> list[Box]:
    """Right, left, above, below, and the four between."""
    x, y = (point.left + point.right) / 2, (point.top + point.bottom) / 2
    right, left = point.right + 5, point.left - 5 - width
    above, below = point.top - 2 - _HEIGHT, point.bottom + 2
    middle = y - _HEIGHT / 2
    corners = [
        (right, middle), (left, middle), (x - width / 2, above), (x - width / 2, below),
        (right, above), (right, below), (left, above), (left, below),
    ]  # fmt: skip
    return [Box(at, top, at + width, top + _HEIGHT) for at, top in corners]
