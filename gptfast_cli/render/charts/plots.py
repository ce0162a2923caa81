"""Charts on two axes: lines by a whole number, points in a plane, and dots with intervals, one row each."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Final, Literal

from gptfast_cli.core.drafts.report import Interval
from gptfast_cli.render.charts.svg import (
    WIDTH,
    Axis,
    Box,
    Element,
    canvas,
    frame,
    interval_text,
    path,
    place_labels,
    round_axis,
    shortened,
    tag,
    text,
    whole_axis,
    with_tooltip,
)

LEFT: Final = 34  # of the plane: the numbers of the y axis stand there
_FOOT: Final = 38  # the numbers and the label of the x axis
_LINES_HEIGHT: Final = 232
_LINES_TOP: Final = 44


@dataclass(frozen=True, slots=True)
class Point:
    """y at x with the bounds of its interval; low = y = high where it has none."""

    x: int
    y: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Line:
    """Points from left to right; the second line of a chart is dashed, in the other colour, with squares."""

    name: str
    points: tuple[Point, ...]
    kind: Literal["first", "second"] = "first"


def line_chart(
    label: str, lines: tuple[Line, ...], *, x_label: str, y_label: str, y_values: tuple[float, ...]
) -> Element:
    """The lines, of at least one point in all; the y axis includes `y_values`."""
    points = [point for line in lines for point in line.points]
    x = whole_axis(x_label, [point.x for point in points], LEFT, WIDTH - 8)
    span = [*y_values, *(point.low for point in points), *(point.high for point in points)]
    y = round_axis(y_label, span, _LINES_HEIGHT - _FOOT, _LINES_TOP)
    return canvas(
        label,
        WIDTH,
        _LINES_HEIGHT,
        frame(x, y),
        *(mark for line in lines for mark in _line_marks(line, x, y)),
        *_line_legend(lines),
    )


def _line_marks(line: Line, x: Axis, y: Axis) -> list[Element]:
    pixels = [(x.scale(point.x), y.scale(point.y)) for point in line.points]
    band = [(x.scale(p.x), y.scale(p.high)) for p in line.points]
    band += [(x.scale(p.x), y.scale(p.low)) for p in reversed(line.points)]
    has_band = len(line.points) > 1 and any(point.low < point.high for point in line.points)
    return [
        *([tag("path", d=path(band) + "Z", class_=f"band {line.kind}")] if has_band else []),
        *_strokes(line, pixels),
        *(_line_whisker(point, x, y, line.kind) for point in line.points if len(line.points) == 1),
        *(
            with_tooltip(_line_tooltip(line, p), _line_dot(line, *pixel))
            for p, pixel in zip(line.points, pixels, strict=True)
        ),
    ]


def _strokes(line: Line, pixels: list[tuple[float, float]]) -> list[Element]:
    """Segments between neighbours: a missing value leaves a gap."""
    near = [a.x + 1 == b.x for a, b in pairwise(line.points)]
    joined = [path([a, b]) for (a, b), is_near in zip(pairwise(pixels), near, strict=True) if is_near]
    return [tag("path", d="".join(joined), class_=f"line {line.kind}")] if joined else []


def _line_whisker(point: Point, x: Axis, y: Axis, kind: str) -> Element:
    at = x.scale(point.x)
    return tag("line", x1=at, x2=at, y1=y.scale(point.low), y2=y.scale(point.high), class_=f"line {kind}")


def _line_dot(line: Line, x: float, y: float) -> Element:
    if line.kind == "first":
        return tag("circle", cx=x, cy=y, r=3.5, class_=f"dot {line.kind}")
    return tag("rect", x=x - 3, y=y - 3, width=6, height=6, class_=f"dot {line.kind}")


def _line_tooltip(line: Line, point: Point) -> str:
    interval = f" [{point.low:.2f}, {point.high:.2f}]" if point.low < point.high else ""
    return f"{line.name}, {point.x}: {point.y:.2f}{interval}"


def _line_legend(lines: tuple[Line, ...]) -> list[Element]:
    marks: list[Element] = []
    at = 0.0
    for line in lines:
        marks += [_line_dot(line, at + 4, 8), text(line.name, at + 14, 12, "key")]
        at += 14 + 6.4 * len(line.name) + 18
    return marks


_DOTS_LEFT: Final = 112
_DOTS_RIGHT: Final = WIDTH - 40
_DOTS_ROW: Final = 22
_DOTS_HEAD: Final = 26
_MAX_ROW_NAME: Final = 17  # letters


@dataclass(frozen=True, slots=True)
class DotRow:
    """A named value with its interval; `note` is added to its tooltip."""

    name: str
    value: Interval
    note: str


@dataclass(frozen=True, slots=True)
class DotGroup:
    """Rows of one kind."""

    name: str
    rows: tuple[DotRow, ...]


def dot_chart(label: str, groups: tuple[DotGroup, ...], mark: Interval, mark_label: str) -> Element:
    """The rows of all groups on one axis, with a dashed line at `mark`."""
    values = [row.value for group in groups for row in group.rows]
    axis = round_axis("", [each for v in (mark, *values) for each in (v.low, v.high)], _DOTS_LEFT, _DOTS_RIGHT, 4)
    bottom = sum(_DOTS_HEAD + _DOTS_ROW * len(group.rows) for group in groups)
    at = axis.scale(mark.value)
    marks: list[Element] = []
    top = 0
    for group in groups:
        marks += [text(group.name, 0, top + 18, "axis"), *_dot_rows(group, top + _DOTS_HEAD, axis)]
        top += _DOTS_HEAD + _DOTS_ROW * len(group.rows)
    return canvas(
        label,
        WIDTH,
        bottom + 40,
        *(tag("line", x1=axis.scale(t), x2=axis.scale(t), y1=8, y2=bottom, class_="rule") for t in axis.ticks),
        *(text(f"{t:.{axis.decimals}f}", axis.scale(t), bottom + 16, "tick", "middle") for t in axis.ticks),
        tag("line", x1=at, x2=at, y1=8, y2=bottom, class_="break-even-dash"),
        text(mark_label, at, bottom + 34, "tick", "middle"),
        *marks,
    )


def _dot_rows(group: DotGroup, top: float, axis: Axis) -> list[Element]:
    return [_dot_row(row, top + (n + 0.5) * _DOTS_ROW, axis) for n, row in enumerate(group.rows)]


def _dot_row(row: DotRow, y: float, axis: Axis) -> Element:
    at = axis.scale
    return with_tooltip(
        f"{row.name}: {interval_text(row.value)}; {row.note}",
        text(shortened(row.name, _MAX_ROW_NAME), 0, y + 4, "key"),
        tag("line", x1=at(row.value.low), x2=at(row.value.high), y1=y, y2=y, class_="line first"),
        tag("circle", cx=at(row.value.value), cy=y, r=4, class_="dot first"),
        text(f"{row.value.value:.2f}", WIDTH, y + 4, "key", "end"),
    )


HEIGHT: Final = 320
RIGHT: Final = WIDTH - 32  # names of curves stand there
TOP: Final = 40
BOTTOM: Final = HEIGHT - _FOOT

_MAX_NAME: Final = 20  # letters of a name that may stand in the plane
_MAX_NAMES: Final = 8  # names


@dataclass(frozen=True, slots=True)
class ScatterPoint:
    """A point with its interval of y, radius in pixels and tooltip."""

    name: str
    tooltip: str
    x: float
    y: float
    low: float
    high: float
    radius: float = 4.0
    is_hollow: bool = False


@dataclass(frozen=True, slots=True)
class Curve:
    """A line through the plane, with its name at the last point."""

    name: str
    points: tuple[tuple[float, float], ...]
    class_: str = "contour"


def point_labels(names: list[str]) -> list[str]:
    """The labels of points: their names, or the row numbers of the table where names are long or many."""
    is_fitting = len(names) <= _MAX_NAMES and all(len(name) <= _MAX_NAME for name in names)
    return names if is_fitting else [str(n) for n in range(1, len(names) + 1)]


def scatter(label: str, points: tuple[ScatterPoint, ...], x: Axis, y: Axis, curves: tuple[Curve, ...] = ()) -> Element:
    """The plane; a label without room is left out, as the table and the tooltip have it too."""
    boxes = [_point_box(point, x, y) for point in points]
    names = [point.name for point in points]
    label_boxes = place_labels(names, boxes, Box(x.scale.start, y.scale.end - 6, x.scale.end, y.scale.start))
    return canvas(
        label,
        WIDTH,
        HEIGHT,
        frame(x, y),
        *(_curve(curve, x, y) for curve in curves),
        *(_point_whisker(point, x, y) for point in points),
        *(_point_mark(point, x, y) for point in points),
        *(
            text(n, box.left, box.bottom - 3, "key halo")
            for n, box in zip(names, label_boxes, strict=True)
            if box is not None
        ),
    )


def _curve(curve: Curve, x: Axis, y: Axis) -> Element:
    """The curve; its name stands where it leaves the plane: above or to the right."""
    pixels = [(x.scale(a), y.scale(b)) for a, b in curve.points]
    end_x, end_y = pixels[-1]
    is_at_top = end_y < y.scale.end + 12 and end_x < x.scale.end - 12
    name = (
        text(curve.name, end_x, y.scale.end - 5, "tick", "middle")
        if is_at_top
        else text(curve.name, x.scale.end + 5, end_y + 4, "tick")
    )
    return tag("g", tag("path", d=path(pixels), class_=curve.class_), name if curve.name else None)


def _point_whisker(point: ScatterPoint, x: Axis, y: Axis) -> Element:
    at = x.scale(point.x)
    return tag("line", x1=at, x2=at, y1=y.scale(point.low), y2=y.scale(point.high), class_="line first")


def _point_mark(point: ScatterPoint, x: Axis, y: Axis) -> Element:
    class_ = "spot hollow" if point.is_hollow else "spot"
    return with_tooltip(
        point.tooltip, tag("circle", cx=x.scale(point.x), cy=y.scale(point.y), r=point.radius, class_=class_)
    )


def _point_box(point: ScatterPoint, x: Axis, y: Axis) -> Box:
    at, height, r = x.scale(point.x), y.scale(point.y), point.radius
    return Box(at - r, height - r, at + r, height + r)
