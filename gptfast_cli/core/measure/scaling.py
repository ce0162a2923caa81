"""What more ranks gain: a row of a benchmark against the same row on fewer ranks, repetition by repetition."""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gptfast_cli.core.measure.record import BenchRow


@dataclass(frozen=True, slots=True)
class Scaling:
    """A case on `tp` ranks against the fewest that it was measured on, `base`.

    speedup:     median of the ratios of repetitions that followed one another; least and most: the extreme ones
    efficiency:  the speedup over that of ranks which cost nothing, tp / base
    """

    test: str
    batch_size: int
    base: int
    tp: int
    speedup: float
    least: float
    most: float
    efficiency: float


def scaling(rows: Sequence[BenchRow]) -> Iterator[Scaling]:
    """Of every case that was measured on several numbers of ranks, in the order of the rows."""
    bases: dict[tuple[str, int], BenchRow] = {}
    for row in sorted((row for row in rows if row.repetitions), key=lambda row: row.tp):
        bases.setdefault((row.test, row.batch_size), row)
    for row in rows:
        base = bases.get((row.test, row.batch_size))
        if base is None or base.tp == row.tp or not row.repetitions:
            continue
        ratios = [before / now for before, now in zip(base.repetitions, row.repetitions, strict=False)]
        speedup = statistics.median(ratios)
        yield Scaling(
            test=row.test,
            batch_size=row.batch_size,
            base=base.tp,
            tp=row.tp,
            speedup=speedup,
            least=min(ratios),
            most=max(ratios),
            efficiency=speedup * base.tp / row.tp,
        )
