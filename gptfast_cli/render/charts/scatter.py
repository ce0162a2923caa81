"""Scatter and dot charts with intervals."""

from dataclasses import dataclass
from typing import Final

from gptfast_cli.core.drafts.report import Interval
from gptfast_cli.render.charts.canvas import (
    WIDTH,
    Axis,
    Box,
    canvas,
    frame,
    marked,
    path,
    placed,
    round_axis,
    shortened,
    text,
)
from gptfast_cli.render.intervals import spoken
from gptfast_cli.render.markup import Element, tag

_LEFT: Final = 112
_RIGHT: Final = WIDTH - 40
_ROW: Final = 22
_HEAD: Final = 26
_NAME: Final = 17  # letters


@dataclass(frozen=True, slots=True)
class DotRow:
    """A value under a name; `note` is told under the pointer."""

    name: str
    value: Interval
    note: str


@dataclass(frozen=True, slots=True)
class DotGroup:
    """Rows of one kind."""

    name: str
    rows: tuple[DotRow, ...]


def dot_chart(label: str, groups: tuple[DotGroup, ...], mark: Interval, mark_label: str) -> Element:
    """The rows of all groups on one scale, with a line at the value of the whole."""
    values = [row.value for group in groups for row in group.rows]
    axis = round_axis("", [each for v in (mark, *values) for each in (v.low, v.high)], _LEFT, _RIGHT, 4)
    bottom = sum(_HEAD + _ROW * len(group.rows) for group in groups)
    at = axis.scale(mark.value)
    marks: list[Element] = []
    top = 0
    for group in groups:
        marks += [text(group.name, 0, top + 18, "axis"), *_rows(group, top + _HEAD, axis)]
        top += _HEAD + _ROW * len(group.rows)
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


def _rows(group: DotGroup, top: float, axis: Axis) -> list[Element]:
    return [_drawn_row(row, top + (n + 0.5) * _ROW, axis) for n, row in enumerate(group.rows)]


def _drawn_row(row: DotRow, y: float, axis: Axis) -> Element:
    at = axis.scale
    return marked(
        f"{row.name}: {spoken(row.value)}; {row.note}",
        text(shortened(row.name, _NAME), 0, y + 4, "key"),
        tag("line", x1=at(row.value.low), x2=at(row.value.high), y1=y, y2=y, class_="line first"),
        tag("circle", cx=at(row.value.value), cy=y, r=4, class_="dot first"),
        text(f"{row.value.value:.2f}", WIDTH, y + 4, "key", "end"),
    )


HEIGHT: Final = 320
LEFT: Final = 34
RIGHT: Final = WIDTH - 32  # names of curves stand there
TOP: Final = 40
BOTTOM: Final = HEIGHT - 38

_LONGEST: Final = 20  # letters of a name that may stand in the plane
_MOST: Final = 8  # names


@dataclass(frozen=True, slots=True)
class ScatterPoint:
    """A point: where y may lie, how large it is drawn, and what it tells; one off the front is drawn hollow."""

    name: str
    told: str
    x: float
    y: float
    low: float
    high: float
    radius: float = 4.0
    is_hollow: bool = False


@dataclass(frozen=True, slots=True)
class Curve:
    """A line through the plane, named at its last point."""

    name: str
    points: tuple[tuple[float, float], ...]
    class_: str = "contour"


def keys(names: list[str]) -> list[str]:
    """What to write beside points: their names, or their numbers in the table where names are long or many."""
    is_fitting = len(names) <= _MOST and all(len(name) <= _LONGEST for name in names)
    return names if is_fitting else [str(n) for n in range(1, len(names) + 1)]


def scatter(label: str, spots: tuple[ScatterPoint, ...], x: Axis, y: Axis, curves: tuple[Curve, ...] = ()) -> Element:
    """The plane; names that find no room are left to the table beside it and to the pointer."""
    boxes = [_box(spot, x, y) for spot in spots]
    names = [spot.name for spot in spots]
    places = placed(names, boxes, Box(x.scale.start, y.scale.end - 6, x.scale.end, y.scale.start))
    return canvas(
        label,
        WIDTH,
        HEIGHT,
        frame(x, y),
        *(_curve(curve, x, y) for curve in curves),
        *(_whisker(spot, x, y) for spot in spots),
        *(_drawn(spot, x, y) for spot in spots),
        *(
            text(n, box.left, box.bottom - 3, "key halo")
            for n, box in zip(names, places, strict=True)
            if box is not None
        ),
    )


def _curve(curve: Curve, x: Axis, y: Axis) -> Element:
    """Its name stands outside of the plane, where it leaves it: above or to the right."""
    points = [(x.scale(a), y.scale(b)) for a, b in curve.points]
    end_x, end_y = points[-1]
    is_at_top = end_y < y.scale.end + 12 and end_x < x.scale.end - 12
    name = (
        text(curve.name, end_x, y.scale.end - 5, "tick", "middle")
        if is_at_top
        else text(curve.name, x.scale.end + 5, end_y + 4, "tick")
    )
    return tag("g", tag("path", d=path(points), class_=curve.class_), name if curve.name else None)


def _whisker(spot: ScatterPoint, x: Axis, y: Axis) -> Element:
    at = x.scale(spot.x)
    return tag("line", x1=at, x2=at, y1=y.scale(spot.low), y2=y.scale(spot.high), class_="line first")


def _drawn(spot: ScatterPoint, x: Axis, y: Axis) -> Element:
    class_ = "spot hollow" if spot.is_hollow else "spot"
    return marked(spot.told, tag("circle", cx=x.scale(spot.x), cy=y.scale(spot.y), r=spot.radius, class_=class_))


def _box(spot: ScatterPoint, x: Axis, y: Axis) -> Box:
    at, height, r = x.scale(spot.x), y.scale(spot.y), spot.radius
    return Box(at - r, height - r, at + r, height + r)
