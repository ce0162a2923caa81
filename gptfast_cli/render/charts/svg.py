"""SVG: elements, the canvas of a chart, its colours and axes, and labels that do not overlap.

All text is escaped as it is written. `charts.css` gives each class its colours, on a page in light and in dark; blue
and orange can be distinguished with every kind of colour blindness.
"""

import html
import math
import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from typing import Final, TypeAlias, Union

from gptfast_cli.core.drafts.report import Interval
from gptfast_cli.render.terminal import printable

Child: TypeAlias = Union["Element", str]
Value: TypeAlias = str | float | None

_NO_XML: Final = {0xFFFE: "\N{REPLACEMENT CHARACTER}", 0xFFFF: "\N{REPLACEMENT CHARACTER}"}


@dataclass(frozen=True, slots=True)
class Element:
    """An element and what is in it."""

    name: str
    attributes: tuple[tuple[str, str], ...]
    children: tuple[Child, ...]

    def __str__(self) -> str:
        """As well-formed XML."""
        attributes = "".join(f' {key}="{_escaped(value)}"' for key, value in self.attributes)
        inner = "".join(_escaped(child) if isinstance(child, str) else str(child) for child in self.children)
        return f"<{self.name}{attributes}>{inner}</{self.name}>"

    def __html__(self) -> str:
        """What a template with autoescape takes as it is."""
        return str(self)


def tag(name: str, /, *children: Child | None, **attributes: Value) -> Element:
    """An element; `class_` is the attribute class, `stroke_width` is stroke-width, and None is left out."""
    named = ((key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items())
    return Element(
        name,
        tuple((key, _value(value)) for key, value in named if value is not None),
        tuple(child for child in children if child is not None),
    )


def _value(value: str | float) -> str:
    if isinstance(value, str):
        return value
    return f"{value:.2f}".rstrip("0").rstrip(".")  # a hundredth of a pixel


def visible(text: str) -> str:
    """The text with control characters, halves of surrogates and what XML excludes replaced by visible characters."""
    whole = text.encode("utf-8", "replace").decode("utf-8")  # a file's name may hold half a surrogate
    return printable(whole).translate(_NO_XML)


def _escaped(text: str) -> str:
    return html.escape(visible(text))


def interval_text(interval: Interval, unit: str = "") -> str:
    """An interval in plain text: 1.71 [1.66, 1.77]."""
    return f"{interval.value:.2f}{unit} [{interval.low:.2f}, {interval.high:.2f}]"


WIDTH = 344  # pixels: what a window of 400 has room for, and a third of a wide page


def canvas(label: str, width: float, height: float, *marks: Child | None) -> Element:
    """A picture with its alternative text."""
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


def chart_style() -> str:
    """The style sheet of all charts."""
    return files("gptfast_cli.render.charts").joinpath("charts.css").read_text("utf-8")


def standalone(picture: Element) -> str:
    """A picture as a file of its own, on a sheet of light colour.

    Colours are written into the rules: not every viewer of SVG knows variables.
    """
    colours, _, rules = chart_style().partition("\n\n")
    light = dict(re.findall(r"--([\w-]+): (#\w+);", colours.partition("@media")[0]))
    style = tag("style", re.sub(r"var\(--([\w-]+)\)", lambda name: light[name[1]], rules))
    sheet = tag("rect", width="100%", height="100%", class_="sheet")
    return str(replace(picture, children=(style, sheet, *picture.children))) + "\n"


def text(words: str, x: float, y: float, class_: str = "", anchor: str = "start") -> Element:
    """A line of text; `anchor` is start, middle or end."""
    return tag("text", words, x=x, y=y, class_=class_ or None, text_anchor=None if anchor == "start" else anchor)


def with_tooltip(title: str, *marks: Child | None, class_: str | None = None) -> Element:
    """Marks with a tooltip."""
    return tag("g", tag("title", title), *marks, class_=class_)


def shortened(words: str, limit: int) -> str:
    """At most `limit` characters of a name: its two ends, for names of models differ there."""
    if len(words) <= limit:
        return words
    head = limit // 2
    return f"{words[:head]}\N{HORIZONTAL ELLIPSIS}{words[len(words) - (limit - head - 1) :]}"


def path(points: list[tuple[float, float]]) -> str:
    """The `d` of a path: straight lines through points."""
    return "M" + "L".join(f"{x:.2f},{y:.2f}" for x, y in points)


EDGES: Final = (1.02, 1.25, 1.6, 2.2)


def shade(speedup: float) -> str:
    """The class of a speed-up: from `loss4` over `even` to `gain4`."""
    side, factor = ("gain", speedup) if speedup >= 1 else ("loss", 1 / max(speedup, 1e-9))
    strength = bisect_right(EDGES, factor)
    return f"{side}{strength}" if strength else "even"


def legend() -> Element:
    """The scale of colours with the speed-ups at which they change."""
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
    """A linear scale from values (low, high) to pixels (start, end)."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """The pixel of a value, clamped to the scale."""
        inside = min(max(value, self.low), self.high)
        return self.start + (inside - self.low) / (self.high - self.low) * (self.end - self.start)


@dataclass(frozen=True, slots=True)
class Axis:
    """A scale with its label and the values of its ticks."""

    scale: Scale
    label: str
    ticks: tuple[float, ...]
    decimals: int = 0


def round_axis(label: str, values: list[float], start: float, end: float, n_steps: int = 5) -> Axis:
    """An axis between the round numbers around all the values."""
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
    """An axis of whole numbers with half a step beside the first and the last; at most about 10 ticks."""
    first, last = min(values), max(values)
    return Axis(
        Scale(first - 0.5, last + 0.5, start, end), label, tuple(range(first, last + 1, 1 + (last - first) // 10))
    )


def frame(x: Axis, y: Axis) -> Element:
    """Horizontal rules, the numbers of both axes, and their labels: that of y above its numbers, that of x below."""
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
"""Pixels of a letter, rather too many than too few."""

_HEIGHT: Final = 14


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle in pixels."""

    left: float
    top: float
    right: float
    bottom: float

    def overlaps(self, other: "Box") -> bool:
        """Whether the two have a point in common."""
        is_beside = self.right <= other.left or other.right <= self.left
        return not (is_beside or self.bottom <= other.top or other.bottom <= self.top)

    def contains(self, other: "Box") -> bool:
        """Whether the other lies within."""
        is_across = self.left <= other.left and other.right <= self.right
        return is_across and self.top <= other.top and other.bottom <= self.bottom


def place_labels(names: Sequence[str], points: Sequence[Box], sheet: Box) -> list[Box | None]:
    """A box for each name beside its point, placed in their order; None if all places around it are taken."""
    taken = list(points)
    boxes: list[Box | None] = []
    for name, point in zip(names, points, strict=True):
        free = (box for box in _around(point, LETTER * len(name)) if sheet.contains(box))
        box = next((box for box in free if not any(box.overlaps(other) for other in taken)), None)
        boxes.append(box)
        taken += [box] if box is not None else []
    return boxes


def _around(point: Box, width: float) -> list[Box]:
    """Right, left, above, below, and the four corners."""
    x, y = (point.left + point.right) / 2, (point.top + point.bottom) / 2
    right, left = point.right + 5, point.left - 5 - width
    above, below = point.top - 2 - _HEIGHT, point.bottom + 2
    middle = y - _HEIGHT / 2
    corners = [
        (right, middle), (left, middle), (x - width / 2, above), (x - width / 2, below),
        (right, above), (right, below), (left, above), (left, below),
    ]  # fmt: skip
    return [Box(at, top, at + width, top + _HEIGHT) for at, top in corners]
