"""Speed-ups by depth and batch size, the line where they break even, and what real runs gave."""

from collections.abc import Mapping, Sequence
from typing import Final

from gptfast_cli.core.drafts.report import GridCell
from gptfast_cli.render.charts.canvas import canvas, marked, shade, text
from gptfast_cli.render.intervals import spoken
from gptfast_cli.render.markup import Element, tag

Edge = tuple[int, int, int, int]
"""A side of a cell, from one corner (x, y) to another, in cells."""

_CELL_WIDTH: Final = 37
_CELL_HEIGHT: Final = 36
_LEFT: Final = 46
_TOP: Final = 38
_RIGHT: Final = 2
_HEAD: Final = 170  # of what the columns are called


def heat_map(label: str, cells: Sequence[GridCell]) -> Element:
    """A column for each k, a row for each batch size, a number in each cell; one that was never reached stays empty."""
    depths = sorted({cell.k for cell in cells})
    batch_sizes = sorted({cell.batch_size for cell in cells})
    places = {(depths.index(cell.k), batch_sizes.index(cell.batch_size)): cell for cell in cells}
    width = _LEFT + max(_CELL_WIDTH * len(depths), _HEAD) + _RIGHT
    return canvas(
        label,
        width,
        _TOP + _CELL_HEIGHT * len(batch_sizes) + 2,
        text("k, tokens drafted in a round", _LEFT, 11, "axis"),
        text("batch", _LEFT - 8, _TOP - 8, "axis", "end"),
        *(text(str(k), _x(n + 0.5), _TOP - 8, "tick", "middle") for n, k in enumerate(depths)),
        *(text(str(b), _LEFT - 8, _y(n + 0.5) + 4, "tick", "end") for n, b in enumerate(batch_sizes)),
        *(_drawn(column, row, cell) for (column, row), cell in places.items()),
        *_line(break_even_edges({place: cell.predicted.value for place, cell in places.items()})),
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


def _drawn(column: int, row: int, cell: GridCell) -> Element:
    x, y, middle = _x(column), _y(row), _x(column + 0.5)
    hue = shade(cell.predicted.value)
    tile = tag("rect", x=x, y=y, width=_CELL_WIDTH - 1, height=_CELL_HEIGHT - 1, class_=hue)
    if cell.measured is None:
        number = text(_number(cell.predicted.value), middle, y + 22, f"cell on-{hue}", "middle")
        return marked(_told(cell), tile, number)
    return marked(
        _told(cell),
        tile,
        text(_number(cell.predicted.value), middle, y + 15, f"cell on-{hue}", "middle"),
        text(_number(cell.measured.value), middle, y + 29, f"cell proved on-{hue}", "middle"),
        tag("rect", x=x + 1.5, y=y + 1.5, width=_CELL_WIDTH - 4, height=_CELL_HEIGHT - 4, class_=f"ring ring-{hue}"),
    )


def _line(edges: list[Edge]) -> list[Element]:
    """Twice: a broad one in the colour of the page sets it off from any cell."""
    if not edges:
        return []
    strokes = "".join(f"M{_x(a) - 0.5:g},{_y(b) - 0.5:g}L{_x(c) - 0.5:g},{_y(d) - 0.5:g}" for a, b, c, d in edges)
    return [tag("path", d=strokes, class_="break-even-halo"), tag("path", d=strokes, class_="break-even")]


def _told(cell: GridCell) -> str:
    parts = [f"k {cell.k}, batch {cell.batch_size}: predicted {spoken(cell.predicted)}"]
    if cell.measured is not None:
        parts.append(f"measured {spoken(cell.measured)}")
    parts.append(f"with a perfect draft {cell.ceiling:.2f}")
    parts.append("loses with any draft" if cell.break_even is None else f"loses under alpha {cell.break_even:.2f}")
    return "; ".join(parts)


def _number(speedup: float) -> str:
    return f"{speedup:.2f}" if speedup < 9.995 else f"{speedup:.1f}"


def _x(column: float) -> float:
    return _LEFT + column * _CELL_WIDTH


def _y(row: float) -> float:
    return _TOP + row * _CELL_HEIGHT
