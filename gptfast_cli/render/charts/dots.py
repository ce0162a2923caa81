"""Values with their intervals, one named row below the other, in groups."""

from dataclasses import dataclass
from typing import Final

from gptfast_cli.core.measure.drafts.judgement import Interval
from gptfast_cli.render.charts.axes import Axis, round_axis
from gptfast_cli.render.charts.canvas import WIDTH, canvas, marked, shortened, text
from gptfast_cli.render.intervals import spoken
from gptfast_cli.render.markup import Element, tag

_LEFT: Final = 112
_RIGHT: Final = WIDTH - 40
_ROW: Final = 22
_HEAD: Final = 26
_NAME: Final = 17  # letters


@dataclass(frozen=True, slots=True)
class Row:
    """A value under a name; `note` is told under the pointer."""

    name: str
    value: Interval
    note: str


@dataclass(frozen=True, slots=True)
class Group:
    """Rows of one kind."""

    name: str
    rows: tuple[Row, ...]


def dot_chart(label: str, groups: tuple[Group, ...], mark: Interval, mark_label: str) -> Element:
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


def _rows(group: Group, top: float, axis: Axis) -> list[Element]:
    return [_drawn(row, top + (n + 0.5) * _ROW, axis) for n, row in enumerate(group.rows)]


def _drawn(row: Row, y: float, axis: Axis) -> Element:
    at = axis.scale
    return marked(
        f"{row.name}: {spoken(row.value)}; {row.note}",
        text(shortened(row.name, _NAME), 0, y + 4, "key"),
        tag("line", x1=at(row.value.low), x2=at(row.value.high), y1=y, y2=y, class_="line first"),
        tag("circle", cx=at(row.value.value), cy=y, r=4, class_="dot first"),
        text(f"{row.value.value:.2f}", WIDTH, y + 4, "key", "end"),
    )
