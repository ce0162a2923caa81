"""Values by a whole number, as lines with points, and bands where there are intervals."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Final, Literal

from gptfast_cli.render.charts.canvas import (
    WIDTH,
    Axis,
    canvas,
    frame,
    marked,
    path,
    round_axis,
    text,
    whole_axis,
)
from gptfast_cli.render.markup import Element, tag

_HEIGHT: Final = 232
_LEFT: Final = 34
_RIGHT: Final = 8
_TOP: Final = 44
_BOTTOM: Final = 38


@dataclass(frozen=True, slots=True)
class Point:
    """A value, where it lies, and from where to where it may lie: low = y = high where that is not known."""

    x: int
    y: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Line:
    """Points from left to right under one name; the second of a chart is drawn in the other colour, with squares."""

    name: str
    points: tuple[Point, ...]
    kind: Literal["first", "second"] = "first"


def line_chart(
    label: str, lines: tuple[Line, ...], *, x_label: str, y_label: str, y_values: tuple[float, ...]
) -> Element:
    """The lines, whose points are not all missing, on a scale that holds `y_values` too."""
    points = [point for line in lines for point in line.points]
    x = whole_axis(x_label, [point.x for point in points], _LEFT, WIDTH - _RIGHT)
    span = [*y_values, *(point.low for point in points), *(point.high for point in points)]
    y = round_axis(y_label, span, _HEIGHT - _BOTTOM, _TOP)
    return canvas(
        label,
        WIDTH,
        _HEIGHT,
        frame(x, y),
        *(mark for line in lines for mark in _drawn(line, x, y)),
        *_legend(lines),
    )


def _drawn(line: Line, x: Axis, y: Axis) -> list[Element]:
    spots = [(x.scale(point.x), y.scale(point.y)) for point in line.points]
    band = [(x.scale(p.x), y.scale(p.high)) for p in line.points]
    band += [(x.scale(p.x), y.scale(p.low)) for p in reversed(line.points)]
    has_band = len(line.points) > 1 and any(point.low < point.high for point in line.points)
    return [
        *([tag("path", d=path(band) + "Z", class_=f"band {line.kind}")] if has_band else []),
        *_strokes(line, spots),
        *(_whisker(point, x, y, line.kind) for point in line.points if len(line.points) == 1),
        *(marked(_told(line, p), _dot(line, *spot)) for p, spot in zip(line.points, spots, strict=True)),
    ]


def _strokes(line: Line, spots: list[tuple[float, float]]) -> list[Element]:
    """Only neighbours are joined: across a value that is missing, nothing is known."""
    near = [a.x + 1 == b.x for a, b in pairwise(line.points)]
    joined = [path([a, b]) for (a, b), is_near in zip(pairwise(spots), near, strict=True) if is_near]
    return [tag("path", d="".join(joined), class_=f"line {line.kind}")] if joined else []


def _whisker(point: Point, x: Axis, y: Axis, kind: str) -> Element:
    at = x.scale(point.x)
    return tag("line", x1=at, x2=at, y1=y.scale(point.low), y2=y.scale(point.high), class_=f"line {kind}")


def _dot(line: Line, x: float, y: float) -> Element:
    if line.kind == "first":
        return tag("circle", cx=x, cy=y, r=3.5, class_=f"dot {line.kind}")
    return tag("rect", x=x - 3, y=y - 3, width=6, height=6, class_=f"dot {line.kind}")


def _told(line: Line, point: Point) -> str:
    interval = f" [{point.low:.2f}, {point.high:.2f}]" if point.low < point.high else ""
    return f"{line.name}, {point.x}: {point.y:.2f}{interval}"


def _legend(lines: tuple[Line, ...]) -> list[Element]:
    marks: list[Element] = []
    at = 0.0
    for line in lines:
        marks += [_dot(line, at + 4, 8), text(line.name, at + 14, 12, "key")]
        at += 14 + 6.4 * len(line.name) + 18
    return marks
