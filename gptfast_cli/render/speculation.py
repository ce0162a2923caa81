"""What speculation came to, for a person: tokens a round, agreement, what was accepted, and where the time went."""

from collections.abc import Iterator

from gptfast_cli.core.measure.speculation import SpeculationReport
from gptfast_cli.render.numbers import digits


def speculation_rows(report: SpeculationReport) -> Iterator[tuple[str, ...]]:
    """Label and cells of each line of the block."""
    depth = "k adapted" if report.k is None else f"k {report.k}"
    if report.tau is None:
        yield "draft", report.draft, depth, "no rounds"
        return
    alpha = "" if report.alpha is None else f"alpha {report.alpha:.3f}"
    yield "draft", report.draft, depth, f"{digits(report.tau)} tokens a round", alpha
    counts = ", ".join(f"{n}: {count / report.rounds:.0%}" for n, count in enumerate(report.accepted_histogram))
    yield "accepted", f"{report.rounds:,} rounds", counts
    yield "time", ", ".join(f"{part} {share:.0%}" for part, share in report.shares.items())
