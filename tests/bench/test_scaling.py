"""A row on more ranks is held against the same row on the fewest, in repetitions that followed one another."""

from typing import Any

from gptfast_cli.core.bench.record import BenchRow, Scaling, scaling

FIELDS: dict[str, Any] = dict.fromkeys(BenchRow.__dataclass_fields__)


def row(tp: int, *seconds: float, test: str = "tg8") -> BenchRow:
    return BenchRow(**FIELDS | {"test": test, "batch_size": 1, "tp": tp, "repetitions": seconds, "ranks": ()})


def test_gains_are_medians_of_pairs() -> None:
    # machine half as fast in the second round: no ratio of medians sees the same
    (gain,) = scaling([row(1, 1.0, 2.0, 1.2), row(2, 0.5, 1.25, 0.8)])
    assert gain == Scaling("tg8", 1, 1, 2, speedup=1.6, least=1.4999999999999998, most=2.0, efficiency=0.8)


def test_the_fewest_ranks_that_worked_are_the_base_of_a_case() -> None:
    gains = list(scaling([row(4, 1.0), row(2, 3.0), row(1), row(1, 9.0, test="pp8"), row(4, 3.0, test="pp8")]))
    assert [(each.test, each.base, each.tp, each.speedup, each.efficiency) for each in gains] == [
        ("tg8", 2, 4, 3.0, 1.5),
        ("pp8", 1, 4, 3.0, 0.75),
    ]


def test_one_number_of_ranks_gains_nothing() -> None:
    assert not list(scaling([row(2, 1.0), row(2, 1.0, test="pp8")]))
