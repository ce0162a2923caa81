"""A row's speed beside an older one: an interval that covers what it says, and losses that are told from noise."""

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gptfast_cli.core.bench.comparison import (
    ComparisonOptions,
    Conditions,
    RowTimes,
    check_comparable,
    compare,
    read_record,
    speed_ratio,
)
from gptfast_cli.core.errors import CorruptError, NotFoundError, UsageError

HERE = Conditions("a chip", "cpu", 2, "bfloat16", "tiny", "plain", "bfloat16", "cpu")
ENVIRONMENT = {"gptfast": "1.0", "commit": "c0ffee0123456789", "cpu": "a chip", "gpu": None, "device": "cpu",
               "threads": 2, "dtype": "bfloat16", "backend": "cpu", "date": "2026-01-02T03:04:05+00:00"}  # fmt: skip
FIVE = (1.0, 1.01, 0.99, 1.02, 0.98)


def row(**changes: Any) -> dict[str, Any]:
    return {
        "test": "tg8", "batch_size": 2, "tp": 1, "model": "tiny", "scheme": "plain", "kv_dtype": "bfloat16",
        "n_prompt": 0, "n_gen": 8, "repetitions": list(FIVE), "error": None,
    } | changes  # fmt: skip


def document(*rows: dict[str, Any], **environment: Any) -> str:
    about = {"command": "gptfast bench tiny", "environment": ENVIRONMENT | environment, "bandwidth": None}
    return json.dumps({"schema": "gptfast.bench/1", **about, "rows": rows})


def options(folder: Path, text: str, fail_above: float | None = None) -> ComparisonOptions:
    (folder / "older.json").write_text(text)
    return ComparisonOptions(folder / "older.json", fail_above)


def now(seconds: tuple[float, ...] = FIVE, error: str | None = None) -> RowTimes:
    return RowTimes(("tg8", 2, 1), 16, seconds, error)


def times(factor: float, seconds: tuple[float, ...] = FIVE) -> tuple[float, ...]:
    return tuple(factor * each for each in seconds)


def test_the_ratio_is_that_of_the_medians_and_above_one_is_faster() -> None:
    assert speed_ratio((1.0, 4.0, 9.0), (0.5, 2.0, 1.0)).value == 4.0
    assert speed_ratio(FIVE, times(0.5)).value == 2.0


def test_the_interval_of_two_equal_programs_covers_one_in_95_of_100_runs() -> None:
    rng = random.Random(0)
    n_trials, n_covered = 300, 0
    for _ in range(n_trials):
        # a machine that is twice as slow at some times, which is where an interval from the deviation fails
        older, newer = ([rng.gauss(10, 0.2) * rng.choice((1, 1, 2)) for _ in range(5)] for _ in range(2))
        ratio = speed_ratio(older, newer)
        assert ratio.low is not None and ratio.high is not None and ratio.low <= ratio.value <= ratio.high
        n_covered += ratio.low <= 1 <= ratio.high
    assert n_covered / n_trials >= 0.95


def test_more_repetitions_narrow_the_interval() -> None:
    rng = random.Random(0)
    widths = []
    for n in (5, 20, 80):
        ratio = speed_ratio([rng.gauss(10, 1) for _ in range(n)], [rng.gauss(10, 1) for _ in range(n)])
        assert ratio.low is not None and ratio.high is not None
        widths.append(ratio.high - ratio.low)
    assert widths[0] > widths[1] > widths[2]


@pytest.mark.parametrize("n", [1, 4])
def test_four_repetitions_are_too_few_for_an_interval(n: int) -> None:
    ratio = speed_ratio(FIVE, FIVE[:n])
    assert (ratio.low, ratio.high) == (None, None)


@pytest.mark.parametrize("form", ["one line", "indented", "json lines", "documents one after another"])
def test_every_form_that_bench_writes_is_read(tmp_path: Path, form: str) -> None:
    rows = [row(), row(batch_size=4, repetitions=[2.0])]
    alone = [
        json.dumps({"schema": "gptfast.bench.row/1", "command": "c", "environment": ENVIRONMENT, **each})
        for each in rows
    ]
    text = {
        "one line": document(*rows),
        "indented": json.dumps(json.loads(document(*rows)), indent=2),
        "json lines": "\n".join(alone) + "\n",
        "documents one after another": f"{document(rows[0])}\n{document(rows[1])}\n",
    }[form]
    found = read_record(options(tmp_path, text)).rows
    assert [(each.times.name, each.times.seconds) for each in found] == [(("tg8", 2, 1), FIVE), (("tg8", 4, 1), (2.0,))]
    assert all(each.conditions == HERE for each in found)


def test_a_row_is_compared_with_the_last_one_of_its_name(tmp_path: Path) -> None:
    text = f"{document(row(repetitions=[5.0]))}\n{document(row())}\n{document(row(batch_size=9))}"
    (compared,) = compare(read_record(options(tmp_path, text)), [now(times(2.0))], HERE).rows
    assert compared.ratio is not None and compared.ratio.value == pytest.approx(0.5, rel=0.02)
    assert compared.older_tok_s == 16.0 and compared.tok_s == 8.0
    assert compared.run == "2026-01-02, gptfast 1.0, commit c0ffee0123: gptfast bench tiny"


def test_a_row_of_the_same_conditions_comes_before_a_later_one_of_others(tmp_path: Path) -> None:
    text = f"{document(row())}\n{document(row(repetitions=[9.0]), threads=1)}"
    (compared,) = compare(read_record(options(tmp_path, text)), [now()], HERE).rows
    assert compared.older_tok_s == 16.0 and compared.differences == ()


@pytest.mark.parametrize(
    ("changed", "environment", "says"),
    [
        ({}, {"threads": 1}, "threads 1 then, 2 now"),
        ({}, {"dtype": "float32"}, "dtype float32 then, bfloat16 now"),
        ({}, {"cpu": "another chip"}, "machine another chip then, a chip now"),
        ({}, {"gpu": "a card"}, "machine a card then, a chip now"),
        ({}, {"backend": "reference"}, "backend reference then, cpu now"),
        ({"model": "big"}, {}, "model big then, tiny now"),
        ({"scheme": "int8"}, {}, "scheme int8 then, plain now"),
        ({"kv_dtype": "int8"}, {}, "KV cache int8 then, bfloat16 now"),
    ],
)
def test_other_conditions_are_named_and_refused_with_a_limit(
    tmp_path: Path, changed: dict[str, Any], environment: dict[str, Any], says: str
) -> None:
    text = document(row(**changed), **environment)
    record = read_record(options(tmp_path, text))
    check_comparable(record, [now().name], HERE)
    (compared,) = compare(record, [now()], HERE).rows
    assert compared.ratio is not None and compared.differences == (says,)
    with pytest.raises(UsageError, match=f"tg8 batch 2 was measured under other conditions.*{says}"):
        check_comparable(read_record(options(tmp_path, text, 5.0)), [now().name], HERE)


def test_a_record_that_names_no_backend_compares_with_any(tmp_path: Path) -> None:
    record = read_record(options(tmp_path, document(row(), backend=None), 5.0))
    check_comparable(record, [now().name], HERE)
    assert compare(record, [now()], HERE).rows[0].differences == ()


def test_a_record_without_any_of_the_rows_is_refused(tmp_path: Path) -> None:
    record = read_record(options(tmp_path, document(row())))
    with pytest.raises(UsageError, match="has none of the rows pp512 batch 1, tg8 batch 2 tp 2") as refused:
        check_comparable(record, [("pp512", 1, 1), ("tg8", 2, 2)], HERE)
    assert "it has tg8 batch 2" in refused.value.hint
    check_comparable(record, [("pp512", 1, 1), ("tg8", 2, 1)], HERE)


@pytest.mark.parametrize(
    ("seconds", "exceeds", "is_unclear"),
    [
        (times(1.2), True, False),
        (times(1.0), False, False),
        (times(0.5), False, False),
        ((1.0, 1.2, 1.08, 1.3, 0.9), True, True),
        ((1.0, 1.2, 1.04, 1.3, 0.9), False, True),
        ((1.2,) * 3, True, True),  # too few for an interval
    ],
)
def test_a_loss_counts_by_its_ratio_and_is_unclear_where_the_interval_spans_the_limit(
    tmp_path: Path, seconds: tuple[float, ...], exceeds: bool, is_unclear: bool
) -> None:
    older = row(repetitions=list(FIVE[: len(seconds)]))
    comparison = compare(read_record(options(tmp_path, document(older), 5.0)), [now(seconds)], HERE)
    (compared,) = comparison.rows
    assert (compared.exceeds_limit, compared.is_unclear) == (exceeds, is_unclear)
    assert bool(comparison.failing) == exceeds


def test_a_row_that_fails_now_has_lost_all_its_speed_and_one_that_failed_then_nothing(tmp_path: Path) -> None:
    record = read_record(options(tmp_path, document(row()), 5.0))
    (compared,) = compare(record, [now((), "OOM")], HERE).failing
    assert (compared.ratio, compared.missing) == (None, "fails now: OOM")
    failed = read_record(options(tmp_path, document(row(repetitions=[], error="OOM")), 5.0))
    (compared,) = compare(failed, [now()], HERE).rows
    assert (compared.missing, compared.exceeds_limit) == ("failed then: OOM", False)
    other = replace(now(), name=("tg8", 7, 1))
    (compared,) = compare(record, [other], HERE).rows
    assert (compared.missing, compared.exceeds_limit) == ("not in the older record", False)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "older.json: not readable as JSON"),
        ("tok/s\n", "older.json: not readable as JSON"),
        ("[]", "older.json: holds no JSON object"),
        (document(), "older.json: contains no bench results"),
        ('{"schema": "gptfast.plan/1"}', r"is not a bench record \(schema 'gptfast.plan/1'\)"),
        (document(row()) + "\n{", "older.json: line 2: not readable as JSON"),
        (document(row(), row(repetitions=[0])), r"row 2: repetitions: \[0\] is not a list of numbers above 0"),
        (document(row(repetitions=[float("inf")])), "Infinity is not a JSON number"),
        (document(row(batch_size=0)), "row 1: batch_size: 0 is not a whole number"),
        (document(row(n_gen=None)), "row 1: n_gen: missing"),
        (document("row"), "rows: row 1 is no object"),  # type: ignore[arg-type]
    ],
)
def test_a_damaged_file_is_refused_by_name_with_the_command_that_writes_one(
    tmp_path: Path, text: str, says: str
) -> None:
    with pytest.raises(CorruptError, match=says) as refused:
        read_record(options(tmp_path, text))
    assert refused.value.hint == "Write such a file with: gptfast bench --json > FILE"


def test_a_file_that_is_not_there_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"--compare cannot read .*older.json: No such file"):
        read_record(ComparisonOptions(tmp_path / "older.json"))
