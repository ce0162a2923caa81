"""One draft in the report: its line, the grid of speed-ups by k and batch size, and where the time of a round goes."""

from collections.abc import Callable, Iterator, Sequence
from typing import Final

from gptfast_cli.core.drafts.report import DraftResult, GridCell
from gptfast_cli.render.numbers import count, digits, duration, size
from gptfast_cli.render.report.figures import draft_figures
from gptfast_cli.render.report.tree import (
    MISSING,
    Block,
    Card,
    Cell,
    Column,
    Detail,
    Group,
    Paragraph,
    Part,
    Pictured,
    Ranged,
    Share,
    Speedup,
    Table,
    Words,
)

TEMPERATURE: Final = Column("temp", "Temperature")
BATCH: Final = Column("batch", "Batch")
DRAFT: Final = Column("draft", "Draft", is_text=True)
K: Final = Column("k", "k")


def draft_card(draft: DraftResult, *, is_open: bool) -> Card:
    """One draft at one temperature: charts on the page, elsewhere the grid and the costs of its best rounds."""
    best = best_cells(draft)
    pictures: list[Block] = [Group(tuple(draft_figures(draft)), "figures")]
    tables: list[Block] = [Paragraph(tuple(_draft_line(draft))), _grid(draft)]
    if draft.grid:
        tables.append(round_table(draft, list(best.values())))
    else:
        note = Paragraph(("Its rounds were not timed.",))
        pictures.insert(0, note)
        tables.append(note)
    highest = max(best.values(), key=lambda cell: cell.predicted.value, default=None)
    return Card(draft, highest, is_open, (Pictured(tuple(pictures), tuple(tables)),))


def _draft_line(draft: DraftResult) -> Iterator[Words]:
    basis = "assumed, not measured" if draft.basis == "assumed" else f"{draft.basis}, {draft.n_tokens:,} tokens"
    costs = "no parameters"
    if draft.n_params:
        reads = f"{count(draft.n_params)} parameters, {size(draft.n_bytes)} a drafted token"
        costs = f"{reads}; load {duration(draft.load_s)}, prefill {duration(draft.prefill_s)}"
    yield from ("alpha ", Ranged(draft.alpha, is_alpha=True), f" ({basis}); {costs}")


def best_cells(draft: DraftResult) -> dict[int, GridCell]:
    """The cell of the highest predicted speed-up of each batch size; of equal ones the first."""
    best: dict[int, GridCell] = {}
    for cell in sorted(draft.grid, key=lambda each: each.batch_size):
        so_far = best.setdefault(cell.batch_size, cell)
        if cell.predicted.value > so_far.predicted.value:
            best[cell.batch_size] = cell
    return best


def _grid(draft: DraftResult) -> Table:
    """A row for each k, a column for each batch size; below a prediction the speed-up of a validation run."""
    sizes = sorted({cell.batch_size for cell in draft.grid})
    batches = [f"batch {each}" if n == 0 else str(each) for n, each in enumerate(sizes)]
    headings = ("k", "tau", *batches, "overall", "conditional")
    columns = tuple(Column(heading, heading) for heading in headings)
    return Table(f"Speed-ups of {draft.draft}", columns, tuple(_grid_rows(draft, sizes)))


def _grid_rows(draft: DraftResult, sizes: Sequence[int]) -> Iterator[tuple[Cell, ...]]:
    cells = {(cell.k, cell.batch_size): cell for cell in draft.grid}
    best = best_cells(draft)
    for k in sorted({*draft.tau, *(cell.k for cell in draft.grid), *range(1, len(draft.acceptance_by_position) + 1)}):
        of_k = [cells.get((k, each)) for each in sizes]
        tau = digits(draft.tau[k].value) if k in draft.tau else ""
        predicted = ("" if c is None else Speedup(c.predicted.value, is_best=c is best[c.batch_size]) for c in of_k)
        yield str(k), tau, *predicted, *_acceptance(draft, k)
        if any(cell and cell.measured for cell in of_k):
            measured = (Speedup(c.measured.value, is_measured=True) if c and c.measured else "" for c in of_k)
            yield "measured", "", *measured


def _acceptance(draft: DraftResult, k: int) -> tuple[Cell, Cell]:
    if k > len(draft.acceptance_by_position):
        return "", ""
    at_k = draft.acceptance_by_position[k - 1]
    conditional = MISSING if at_k.conditional is None else f"{at_k.conditional:.0%}"
    return Share(at_k.unconditional), conditional


def round_table(draft: DraftResult, cells: Sequence[GridCell]) -> Table:
    """Where the time of a round goes."""
    columns = tuple(column for column, _ in _ROUND)
    rows = tuple(tuple(value(cell) for _, value in _ROUND) for cell in cells)
    return Table(f"Costs of a round: {draft.draft}, temperature {draft.temperature:g}", columns, rows, n_names=2)


_ROUND: Final[Sequence[tuple[Column, Callable[[GridCell], Cell]]]] = (
    (BATCH, lambda cell: str(cell.batch_size)),
    (K, lambda cell: str(cell.k)),
    (Column("speed-up", "Speed-up"), lambda cell: Ranged(cell.predicted, "×")),
    (Column("round", "Round"), lambda cell: duration(cell.cost.total)),
    (Column("draft", "Drafting"), lambda cell: Part(cell.cost.draft, cell.cost.total)),
    (Column("verify", "Verifying"), lambda cell: Part(cell.cost.verify, cell.cost.total)),
    (Column("sample", "Sampling"), lambda cell: Part(cell.cost.sample, cell.cost.total)),
    (Column("host", "Host"), lambda cell: Part(cell.cost.host, cell.cost.total)),
    (
        Column("break-even", "Break-even α"),
        lambda cell: "never" if cell.break_even is None else f"{cell.break_even:.3f}",
    ),
    (Column("at most", "Perfect draft", since=Detail.MARKDOWN), lambda cell: digits(cell.ceiling)),
    (Column("tok/s", "tok/s", since=Detail.MARKDOWN), lambda cell: digits(cell.tok_s)),
    (Column("TPOT", "TPOT", since=Detail.MARKDOWN), lambda cell: duration(cell.token_seconds)),
    (Column("GB/s", "GB/s", since=Detail.MARKDOWN), lambda cell: digits(cell.gbps)),
)
