"""What speculation came to, for a person: tokens a round, agreement, what was accepted, and where the time went."""

from collections.abc import Iterator, Sequence

from gptfast_cli.core.bench.throughput import SpeculationReport
from gptfast_cli.render.numbers import digits

_MOST_COUNTS = 7  # that fit into a line
_MOST_PLACES = 5


def speculation_rows(report: SpeculationReport) -> Iterator[tuple[str, ...]]:
    """Label and cells of each line of the block."""
    depth = "k adapted" if report.k is None else f"k {report.k}"
    draft = f"{report.draft}, whole on each rank" if report.replicated else report.draft
    if report.tau is None:
        yield "draft", draft, depth, "no rounds"
        return
    alpha = "" if report.alpha is None else f"alpha {report.alpha:.3f}"
    yield "draft", draft, depth, f"{digits(report.tau)} tokens a round", alpha
    counts = ", ".join(f"{kept}: {n / report.rounds:.0%}" for kept, n in _grouped(report.accepted_histogram))
    yield "accepted", f"{report.rounds:,} rounds", counts
    if report.acceptance:
        of_all, reached = zip(*((each.unconditional, each.conditional) for each in report.acceptance), strict=True)
        yield "in place", "once reached", _percents(reached), f"of all {_percents(of_all)}"
    yield "time", ", ".join(f"{part} {share:.0%}" for part, share in report.shares.items())


def _percents(shares: Sequence[float | None]) -> str:
    """The first few shares: `91 80 - 65 %`."""
    shown = ["-" if share is None else f"{share * 100:.0f}" for share in shares[:_MOST_PLACES]]
    if len(shares) > _MOST_PLACES:
        shown[-1] = "\N{HORIZONTAL ELLIPSIS}"
    return " ".join(shown) + " %"


def _grouped(histogram: Sequence[int]) -> Iterator[tuple[str, int]]:
    """Rounds by the number of tokens that they kept; the larger numbers of a long histogram together, by doubling."""
    if len(histogram) <= _MOST_COUNTS:
        yield from ((str(kept), n) for kept, n in enumerate(histogram))
        return
    begin, end = 0, 1
    while begin < len(histogram):
        last = min(end, len(histogram)) - 1
        yield (str(begin) if last == begin else f"{begin}-{last}"), sum(histogram[begin:end])
        begin, end = end, max(end + 1, 2 * end - 1)
