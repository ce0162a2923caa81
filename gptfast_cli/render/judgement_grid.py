"""What a draft gains by depth and batch size: the grid of speed-ups, and the time of a round at the best of them."""

from collections.abc import Callable, Iterator
from typing import Final, TypeAlias

from gptfast_cli.core.drafts.report import DraftResult, GridCell
from gptfast_cli.render.judgement_look import (
    NONE,
    ReportStyle,
    agreement,
    ranged,
)
from gptfast_cli.render.numbers import digits, duration
from gptfast_cli.render.tables import Table

_Row: TypeAlias = tuple[str, ...]


def grid_table(draft: DraftResult, look: ReportStyle) -> Table:
    """A row for each depth, a column for each batch size; beside them tau, and how often the k-th token is accepted.

    What was run for real stands below its prediction.
    """
    sizes = sorted({cell.batch_size for cell in draft.grid})
    batches = [look.other.format(f"batch {size}" if n == 0 else str(size)) for n, size in enumerate(sizes)]
    accepted = look.other.format("accepted") if look.bar is None else "accepted".ljust(len(_accepted(0.0, look)))
    headings = ("k", "tau", *batches, accepted, "once reached")
    return Table(headings, tuple(_grid_rows(draft, sizes, look)), ">" * len(headings))


def best_cells(draft: DraftResult) -> dict[int, GridCell]:
    """The cell of the highest predicted speed-up of each batch size."""
    best: dict[int, GridCell] = {}
    for cell in sorted(draft.grid, key=lambda each: each.batch_size):
        so_far = best.setdefault(cell.batch_size, cell)
        if cell.predicted.value > so_far.predicted.value:
            best[cell.batch_size] = cell
    return best


def cost_table(draft: DraftResult, look: ReportStyle) -> Table:
    """Where the time of a round goes at the best depth of each batch size."""
    columns = {**_COSTS, **(_DETAILS if look.is_detailed else {})}
    rows = tuple(tuple(show(cell) for show in columns.values()) for cell in best_cells(draft).values())
    return Table(tuple(columns), rows, ">" * len(columns), n_names=2)


def _grid_rows(draft: DraftResult, sizes: list[int], look: ReportStyle) -> Iterator[_Row]:
    cells = {(cell.k, cell.batch_size): cell for cell in draft.grid}
    best = best_cells(draft)
    for k in sorted({*draft.tau, *(cell.k for cell in draft.grid), *range(1, len(draft.acceptance_by_position) + 1)}):
        of_k = [cells.get((k, size)) for size in sizes]
        tau = digits(draft.tau[k].value) if k in draft.tau else ""
        yield str(k), tau, *(_predicted(cell, best, look) for cell in of_k), *_place(draft, k, look)
        if any(cell and cell.measured for cell in of_k):
            yield "measured", "", *(_measured(cell, look) for cell in of_k)


def _predicted(cell: GridCell | None, best: dict[int, GridCell], look: ReportStyle) -> str:
    if cell is None:
        return ""
    return look.marked(cell.predicted.value, is_best=cell is best[cell.batch_size])


def _measured(cell: GridCell | None, look: ReportStyle) -> str:
    return look.other.format(digits(cell.measured.value)) if cell and cell.measured else ""


def _place(draft: DraftResult, k: int, look: ReportStyle) -> _Row:
    if k > len(draft.acceptance_by_position):
        return "", ""
    place = draft.acceptance_by_position[k - 1]
    reached = NONE if place.conditional is None else f"{place.conditional:.0%}"
    return _accepted(place.unconditional, look), reached


def _accepted(share: float, look: ReportStyle) -> str:
    text = f"{share:.0%}"
    return text if look.bar is None else f"{text:>4} {look.bar(share)}"


def _part(seconds: float, cell: GridCell) -> str:
    return f"{seconds / cell.cost.total:.0%}" if cell.cost.total else NONE


_COSTS: Final[dict[str, Callable[[GridCell], str]]] = {
    "batch": lambda cell: str(cell.batch_size),
    "k": lambda cell: str(cell.k),
    "speed-up": lambda cell: ranged(cell.predicted),
    "round": lambda cell: duration(cell.cost.total),
    "draft": lambda cell: _part(cell.cost.draft, cell),
    "verify": lambda cell: _part(cell.cost.verify, cell),
    "sample": lambda cell: _part(cell.cost.sample, cell),
    "host": lambda cell: _part(cell.cost.host, cell),
    "break-even": lambda cell: "never" if cell.break_even is None else agreement(cell.break_even),
}

_DETAILS: Final[dict[str, Callable[[GridCell], str]]] = {
    "at most": lambda cell: digits(cell.ceiling),
    "tok/s": lambda cell: digits(cell.tok_s),
    "TPOT": lambda cell: duration(cell.token_seconds),
    "GB/s": lambda cell: digits(cell.gbps),
}
