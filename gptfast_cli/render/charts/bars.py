"""Charts of bars and cells: the heat map of speed-ups, the waterfall of losses, and rows of bars in groups."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from gptfast_cli.core.drafts.report import GridCell, Interval
from gptfast_cli.render.charts.svg import Element, Scale, canvas, interval_text, shade, tag, text, with_tooltip

Edge: TypeAlias = tuple[int, int, int, int]
"""A side of a cell from corner to corner: x1, y1, x2, y2, in cells."""

_CELL_WIDTH: Final = 37
_CELL_HEIGHT: Final = 36
_LEFT: Final = 46
_TOP: Final = 38
_RIGHT: Final = 2
_MIN_WIDTH: Final = 170  # pixels of the label of the columns


def heat_map(label: str, cells: Sequence[GridCell]) -> Element:
    """A column for each k, a row for each batch size; a cell that was not measured stays empty."""
    depths = sorted({cell.k for cell in cells})
    batch_sizes = sorted({cell.batch_size for cell in cells})
    positions = {(depths.index(cell.k), batch_sizes.index(cell.batch_size)): cell for cell in cells}
    width = _LEFT + max(_CELL_WIDTH * len(depths), _MIN_WIDTH) + _RIGHT
    return canvas(
        label,
        width,
        _TOP + _CELL_HEIGHT * len(batch_sizes) + 2,
        text("k, tokens drafted in a round", _LEFT, 11, "axis"),
        text("batch", _LEFT - 8, _TOP - 8, "axis", "end"),
        *(text(str(k), _x(n + 0.5), _TOP - 8, "tick", "middle") for n, k in enumerate(depths)),
        *(text(str(b), _LEFT - 8, _y(n + 0.5) + 4, "tick", "end") for n, b in enumerate(batch_sizes)),
        *(_cell_mark(column, row, cell) for (column, row), cell in positions.items()),
        *_break_even_line(break_even_edges({position: cell.predicted.value for position, cell in positions.items()})),
    )


def break_even_edges(speedups: Mapping[tuple[int, int], float]) -> list[Edge]:
    """The sides between a cell (column, row) that gains, with 1 or more, and a neighbour that loses."""
    edges: list[Edge] = []
    for (column, row), speedup in speedups.items():
        right, below = speedups.get((column + 1, row)), speedups.get((column, row + 1))
        if right is not None and (speedup >= 1) != (right >= 1):
            edges.append((column + 1, row, column + 1, row + 1))
        if below is not None and (speedup >= 1) != (below >= 1):
            edges.append((column, row + 1, column + 1, row + 1))
    return sorted(edges)


def _cell_mark(column: int, row: int, cell: GridCell) -> Element:
    x, y, middle = _x(column), _y(row), _x(column + 0.5)
    hue = shade(cell.predicted.value)
    tile = tag("rect", x=x, y=y, width=_CELL_WIDTH - 1, height=_CELL_HEIGHT - 1, class_=hue)
    if cell.measured is None:
        number = text(_number(cell.predicted.value), middle, y + 22, f"cell on-{hue}", "middle")
        return with_tooltip(_cell_tooltip(cell), tile, number)
    return with_tooltip(
        _cell_tooltip(cell),
        tile,
        text(_number(cell.predicted.value), middle, y + 15, f"cell on-{hue}", "middle"),
        text(_number(cell.measured.value), middle, y + 29, f"cell proved on-{hue}", "middle"),
        tag("rect", x=x + 1.5, y=y + 1.5, width=_CELL_WIDTH - 4, height=_CELL_HEIGHT - 4, class_=f"ring ring-{hue}"),
    )


def _break_even_line(edges: list[Edge]) -> list[Element]:
    """The line above a wider one in the colour of the page, which sets it off from any cell."""
    if not edges:
        return []
    strokes = "".join(f"M{_x(a) - 0.5:g},{_y(b) - 0.5:g}L{_x(c) - 0.5:g},{_y(d) - 0.5:g}" for a, b, c, d in edges)
    return [tag("path", d=strokes, class_="break-even-halo"), tag("path", d=strokes, class_="break-even")]


def _cell_tooltip(cell: GridCell) -> str:
    parts = [f"k {cell.k}, batch {cell.batch_size}: predicted {interval_text(cell.predicted)}"]
    if cell.measured is not None:
        parts.append(f"measured {interval_text(cell.measured)}")
    parts.append(f"with a perfect draft {cell.ceiling:.2f}")
    parts.append("loses with any draft" if cell.break_even is None else f"loses under alpha {cell.break_even:.2f}")
    return "; ".join(parts)


def _number(speedup: float) -> str:
    return f"{speedup:.2f}" if speedup < 9.995 else f"{speedup:.1f}"


def _x(column: float) -> float:
    return _LEFT + column * _CELL_WIDTH


def _y(row: float) -> float:
    return _TOP + row * _CELL_HEIGHT


_BAR_ROW: Final = 44
_BAR_HEIGHT: Final = 16
_WATERFALL_FOOT: Final = 26


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar from zero, or of the change from one value to another; `note` explains its length."""

    name: str
    note: str
    kind: Literal["ideal", "change", "reached", "measured"]
    start: float
    end: float
    interval: Interval | None = None


def waterfall(label: str, bars: tuple[Bar, ...], mark: float, mark_label: str) -> Element:
    """The bars one below the other, and a dashed line at the value `mark`."""
    highs = [bar.interval.high for bar in bars if bar.interval is not None]
    widest = max(mark, *highs, *(max(bar.start, bar.end) for bar in bars)) * 1.01
    bottom = _BAR_ROW * len(bars)
    at = _percent(mark / widest)
    marks = [n * _BAR_ROW + 21 for n in range(len(bars))]  # beside the bars, not through the writing above them
    return tag(
        "svg",
        tag("title", label),
        *(_bar_mark(bar, n * _BAR_ROW, widest) for n, bar in enumerate(bars)),
        *(tag("line", x1=at, x2=at, y1=y, y2=y + _BAR_HEIGHT + 3, class_="break-even-dash") for y in marks),
        text(mark_label, 0, bottom + 17, "tick")
        if mark < widest / 2
        else tag("text", mark_label, x="100%", y=bottom + 17, class_="tick", text_anchor="end"),
        xmlns="http://www.w3.org/2000/svg",
        role="img",
        aria_label=label,
        width="100%",
        height=bottom + _WATERFALL_FOOT,
        class_="wide",
    )


def _bar_mark(bar: Bar, top: int, widest: float) -> Element:
    """Horizontal positions are percentages: the chart fills its container, and the text keeps its size."""
    low, high = sorted((bar.start, bar.end))
    y = top + 22
    number = _signed(bar.end - bar.start) if bar.kind == "change" else f"{bar.end:.2f}×"
    kind = bar.kind if bar.kind != "change" else "loss" if bar.end <= bar.start else "gain"
    return with_tooltip(
        f"{bar.name}: {number} ({bar.note})",
        _caption(bar, top + 15),
        tag("text", number, x="100%", y=top + 15, class_="number", text_anchor="end"),
        tag("line", x1=0, x2="100%", y1=y + _BAR_HEIGHT, y2=y + _BAR_HEIGHT, class_="rule"),
        tag(
            "rect",
            x=_percent(low / widest),
            y=y,
            width=_percent(max(high - low, widest / 500) / widest),
            height=_BAR_HEIGHT,
            class_=f"bar {kind}",
        ),
        *(_whisker(bar.interval, y + _BAR_HEIGHT / 2, widest) if bar.interval is not None else ()),
    )


def _caption(bar: Bar, y: float) -> Element:
    return tag(
        "text", tag("tspan", bar.name, class_="name"), tag("tspan", f"\N{EN SPACE}{bar.note}", class_="note"), x=0, y=y
    )


def _whisker(interval: Interval, y: float, widest: float) -> list[Element]:
    low, high = _percent(interval.low / widest), _percent(interval.high / widest)
    return [
        tag("line", x1=low, x2=high, y1=y, y2=y, class_="whisker"),
        *(tag("line", x1=end, x2=end, y1=y - 4, y2=y + 4, class_="whisker") for end in (low, high)),
    ]


def _signed(change: float) -> str:
    return "0.00" if abs(change) < 0.005 else f"{change:+.2f}".replace("-", "\N{MINUS SIGN}")


def _percent(part: float) -> str:
    return f"{100 * part:.3f}%"


_ROWS_WIDTH: Final = 640
_ROWS_MARGIN: Final = 16
_ROWS_LEFT: Final = 120
_ROWS_RIGHT: Final = 470
_ROWS_ROW: Final = 24
_ROWS_HEAD: Final = 30
_ROWS_LINE: Final = 17


@dataclass(frozen=True, slots=True)
class BarRow:
    """A bar from zero with its interval and the text at its right end; `mark` is another value to compare it with."""

    name: str
    number: str
    interval: Interval | None
    mark: float | None = None


@dataclass(frozen=True, slots=True)
class BarGroup:
    """Rows on one scale from zero."""

    name: str
    rows: tuple[BarRow, ...]


def grouped_bars(label: str, groups: Sequence[BarGroup], above: Sequence[str], below: Sequence[str]) -> Element:
    """The rows of each group on a scale of its own, between lines of text."""
    marks: list[Element] = []
    y = _ROWS_MARGIN
    for n, line in enumerate(above):
        marks.append(text(line, _ROWS_MARGIN, y + 12, "tick" if n else "name"))
        y += _ROWS_LINE
    for group in groups:
        marks.append(text(group.name, _ROWS_MARGIN, y + 21, "name"))
        y += _ROWS_HEAD
        marks += _bar_rows(group, y)
        y += _ROWS_ROW * len(group.rows)
    y += _ROWS_MARGIN
    for line in below:
        marks.append(text(line, _ROWS_MARGIN, y + 12, "tick"))
        y += _ROWS_LINE
    return canvas(label, _ROWS_WIDTH, y + _ROWS_MARGIN, *marks)


def _bar_rows(group: BarGroup, top: float) -> list[Element]:
    values = [each for row in group.rows if row.interval for each in (row.interval.value, row.interval.high)]
    values += [row.mark for row in group.rows if row.mark is not None]
    scale = Scale(0.0, max(values, default=1.0), _ROWS_LEFT, _ROWS_RIGHT)
    return [_bar_row(row, top + n * _ROWS_ROW, scale) for n, row in enumerate(group.rows)]


def _bar_row(row: BarRow, top: float, scale: Scale) -> Element:
    middle, bottom = top + _BAR_HEIGHT / 2, top + _BAR_HEIGHT
    marks = [text(row.name, _ROWS_MARGIN, middle + 4, "tick"), text(row.number, _ROWS_RIGHT + 8, middle + 4)]
    if row.interval is not None:
        width = scale(row.interval.value) - scale.start
        low, high = scale(row.interval.low), scale(row.interval.high)
        marks.append(tag("rect", x=scale.start, y=top, width=width, height=_BAR_HEIGHT, class_="bar row"))
        marks.append(tag("line", x1=low, x2=high, y1=middle, y2=middle, class_="whisker"))
        marks += [tag("line", x1=x, x2=x, y1=middle - 4, y2=middle + 4, class_="whisker") for x in (low, high)]
    if row.mark is not None:
        at = scale(row.mark)
        marks.append(tag("line", x1=at, x2=at, y1=top - 3, y2=bottom + 3, class_="mark"))
    return with_tooltip(f"{row.name}: {row.number}", *marks)
