"""Comparison with an older record of `bench`: the ratio of each row's speed with its interval, and a limit on losses.

The ratio is that of the median speeds. Its 95 % interval is bootstrapped (Efron 1979) over the repetitions of both
records: with five or more in each it covers the ratio of two equal programs in at least 95 of 100 runs, with fewer it
would not, and there is none. It covers the noise within the two runs, not a machine that was faster on another day.
"""

import random
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final

from gptfast_cli.core.bench.environment import Environment
from gptfast_cli.core.errors import CorruptError, NotFoundError, UsageError
from gptfast_cli.core.fields import Fields, parse_fields

SCHEMA: Final = "gptfast.bench/1"
ROW_SCHEMA: Final = "gptfast.bench.row/1"
"""The `schema` of a whole record, and of a row that stands alone."""

_FEWEST_REPETITIONS: Final = 5
_N_SAMPLES: Final = 1000
_HOW_TO_RECORD: Final = "Write such a file with: gptfast bench --json > FILE"

RowName = tuple[str, int, int]
"""Test, batch size and ranks of a row: rows of one name measure the same work."""


@dataclass(frozen=True, slots=True)
class Ratio:
    """New speed ÷ older speed: above 1 is faster. Bounds of the 95 % interval; None with too few repetitions."""

    value: float
    low: float | None
    high: float | None


def speed_ratio(older_seconds: Sequence[float], seconds: Sequence[float]) -> Ratio:
    """The ratio of the speeds of two rows of equal work, from the seconds of their repetitions (at least one each)."""
    ratio = statistics.median(older_seconds) / statistics.median(seconds)
    if min(len(older_seconds), len(seconds)) < _FEWEST_REPETITIONS:
        return Ratio(ratio, None, None)
    rng = random.Random(0)  # noqa: S311  # the same interval for the same records
    ratios = sorted(_resampled(older_seconds, rng) / _resampled(seconds, rng) for _ in range(_N_SAMPLES))
    n_outside = _N_SAMPLES // 40  # 2.5 % on each side
    return Ratio(ratio, ratios[n_outside], ratios[-n_outside - 1])


def _resampled(seconds: Sequence[float], rng: random.Random) -> float:
    return statistics.median(rng.choices(seconds, k=len(seconds)))


@dataclass(frozen=True, slots=True)
class Conditions:
    """What two measurements must share for their ratio to be that of the programs alone.

    backend: None in a record of a version that did not note it
    """

    machine: str
    device: str
    threads: int
    dtype: str
    model: str
    scheme: str
    kv_dtype: str
    backend: str | None

    def differences(self, now: "Conditions") -> tuple[str, ...]:
        """What differs, as `threads 2 then, 1 now`."""
        names = {"kv_dtype": "KV cache"}
        pairs = ((each.name, getattr(self, each.name), getattr(now, each.name)) for each in fields(self))
        return tuple(f"{names.get(name, name)} {a} then, {b} now" for name, a, b in pairs if None is not a != b)


def conditions(environment: Environment, model: str, scheme: str, kv_dtype: str) -> Conditions:
    """The conditions of a measurement in this process."""
    return Conditions(
        machine=environment.gpu or environment.cpu or "",
        device=environment.device,
        threads=environment.threads,
        dtype=environment.dtype,
        model=model,
        scheme=scheme,
        kv_dtype=kv_dtype,
        backend=environment.backend,
    )


@dataclass(frozen=True, slots=True)
class RowTimes:
    """Seconds of each repetition of a row that processes `n_tokens`; without any, `error` may say why it failed."""

    name: RowName
    n_tokens: int
    seconds: tuple[float, ...]
    error: str | None

    @property
    def tok_s(self) -> float | None:
        """Median tokens per second; None if it failed."""
        return statistics.median(self.n_tokens / each for each in self.seconds) if self.seconds else None


@dataclass(frozen=True, slots=True)
class OlderRow:
    """A row of an older record; `run` describes what measured it: date, version, bandwidth and command."""

    times: RowTimes
    conditions: Conditions
    run: str


@dataclass(frozen=True, slots=True)
class ComparisonOptions:
    """A file to compare with, and the loss of speed that is allowed, in per cent; None allows any."""

    file: Path
    fail_above: float | None = None


@dataclass(frozen=True, slots=True)
class OlderRecord:
    """The rows of a file, in its order; it may hold several records, one after another."""

    options: ComparisonOptions
    rows: tuple[OlderRow, ...]

    def find(self, name: RowName, now: Conditions) -> OlderRow | None:
        """The row to compare with: the last of those with the fewest different conditions."""
        found = [row for row in reversed(self.rows) if row.times.name == name]
        return min(found, key=lambda row: len(row.conditions.differences(now)), default=None)


def read_record(options: ComparisonOptions) -> OlderRecord:
    """Read what `bench` printed with --json or with --output jsonl.

    Raises NotFoundError if there is no such file, CorruptError if it holds anything else.
    """
    path = options.file
    try:
        content = path.read_bytes()
    except OSError as error:
        raise NotFoundError(f"--compare cannot read {path}: {error.strerror}.", _HOW_TO_RECORD) from error
    try:
        rows = [row for part in _parts(content, path.name) for row in _rows(part)]
    except CorruptError as error:
        raise CorruptError(error.message, _HOW_TO_RECORD) from error
    if not rows:
        raise CorruptError(f"{path.name}: contains no bench results.", _HOW_TO_RECORD)
    return OlderRecord(options, tuple(rows))


def _parts(content: bytes, name: str) -> Iterator[Fields]:
    """The JSON objects of a file: one, on any number of lines, or one on each line."""
    lines = [line for line in content.splitlines() if line.strip()]
    if len(lines) > 1 and lines[0].rstrip().endswith(b"}"):
        yield from (parse_fields(line, f"{name}: line {n}") for n, line in enumerate(lines, start=1))
    else:
        yield parse_fields(content, name)


def _rows(part: Fields) -> Iterator[OlderRow]:
    match part.text("schema", ""):
        case schema if schema == SCHEMA:
            for n, row in enumerate(part.values.get("rows") or (), start=1):
                if not isinstance(row, dict):
                    raise part.corrupt("rows", f"row {n} is no object")
                yield _row(Fields(row, f"{part.where}: row {n}"), part)
        case schema if schema == ROW_SCHEMA:
            yield _row(part, part)
        case schema:
            raise CorruptError(f"{part.where}: is not a bench record (schema {schema!r}).")


def _row(row: Fields, record: Fields) -> OlderRow:
    environment = record.section("environment")
    batch_size = row.integer("batch_size")
    times = RowTimes(
        name=(row.text("test"), batch_size, row.integer("tp", 1)),
        n_tokens=batch_size * (row.integer("n_prompt", minimum=0) + row.integer("n_gen", minimum=0)),
        seconds=row.numbers("repetitions"),
        error=row.text("error", "") or None,
    )
    return OlderRow(
        times,
        conditions=Conditions(
            machine=environment.text("gpu", environment.text("cpu", "")),
            device=environment.text("device"),
            threads=environment.integer("threads"),
            dtype=environment.text("dtype"),
            model=row.text("model"),
            scheme=row.text("scheme"),
            kv_dtype=row.text("kv_dtype"),
            backend=environment.text("backend", "") or None,
        ),
        run=_run(record, environment),
    )


def _run(record: Fields, environment: Fields) -> str:
    commit = environment.text("commit", "")[:10]
    version = f"gptfast {environment.text('gptfast')}{f', commit {commit}' if commit else ''}"
    reads = ""
    if "bandwidth" in record:
        reads = f", memory reads {record.section('bandwidth').number('median_gbps'):.1f} GB/s"
    return f"{environment.text('date')[:10]}, {version}{reads}: {record.text('command')}"


@dataclass(frozen=True, slots=True)
class RowComparison:
    """A row beside the older one of its name.

    older_tok_s, tok_s: medians; None if there is no such row or it failed
    ratio:              None if either is missing, and then `missing` says why
    differences:        of the conditions; their ratio is not that of the programs alone
    run:                the run that measured the older row
    limit:              the lowest ratio that is allowed; None without a limit
    """

    test: str
    batch_size: int
    tp: int
    older_tok_s: float | None
    tok_s: float | None
    ratio: Ratio | None
    missing: str | None
    differences: tuple[str, ...]
    run: str | None
    limit: float | None

    @property
    def exceeds_limit(self) -> bool:
        """Whether it lost more speed than is allowed: all of it where it ran then and fails now."""
        if self.limit is None:
            return False
        if self.ratio is None:
            return self.older_tok_s is not None
        return self.ratio.value < self.limit

    @property
    def is_unclear(self) -> bool:
        """Whether noise could have decided on which side of the limit it is."""
        if self.ratio is None or self.limit is None:
            return False
        if self.ratio.low is None or self.ratio.high is None:
            return True
        return self.ratio.low < self.limit <= self.ratio.high


@dataclass(frozen=True, slots=True)
class Comparison:
    """All rows beside those of an older record; `fail_above` is the loss that is allowed, in per cent."""

    file: str
    fail_above: float | None
    rows: tuple[RowComparison, ...]

    @property
    def failing(self) -> tuple[RowComparison, ...]:
        """The rows that lost more than is allowed."""
        return tuple(row for row in self.rows if row.exceeds_limit)


def check_comparable(record: OlderRecord, names: Sequence[RowName], now: Conditions) -> None:
    """Raise UsageError, before anything is timed, for a record that has none of these rows.

    With a limit, a row that was measured under other conditions is refused too.
    """
    found = {name: row for name in names if (row := record.find(name, now)) is not None}
    if not found:
        there = ", ".join(dict.fromkeys(row_title(row.times.name) for row in record.rows[:4]))
        raise UsageError(
            f"{record.options.file}: has none of the rows {', '.join(map(row_title, names[:4]))}.",
            f"Measure the same lengths and batch sizes; it has {there}{' ...' if len(record.rows) > 4 else ''}.",
        )
    if record.options.fail_above is None:
        return
    for name, row in found.items():
        if differences := row.conditions.differences(now):
            raise UsageError(
                f"{record.options.file}: {row_title(name)} was measured under other conditions, which --fail-above "
                f"does not compare: {'; '.join(differences)}.",
                "Measure under the same conditions, or leave out --fail-above to see the ratios.",
            )


def compare(record: OlderRecord, rows: Sequence[RowTimes], now: Conditions) -> Comparison:
    """Every row beside the older one of its name."""
    options = record.options
    return Comparison(str(options.file), options.fail_above, tuple(_compared(record, row, now) for row in rows))


def _compared(record: OlderRecord, row: RowTimes, now: Conditions) -> RowComparison:
    fail_above = record.options.fail_above
    older = record.find(row.name, now)
    ratio = missing = None
    if older is None:
        missing = "not in the older record"
    elif not older.times.seconds:
        missing = f"failed then: {older.times.error or 'interrupted'}"
    elif not row.seconds:
        missing = f"fails now: {row.error}"
    else:
        ratio = speed_ratio(older.times.seconds, row.seconds)
    test, batch_size, tp = row.name
    return RowComparison(
        test=test,
        batch_size=batch_size,
        tp=tp,
        older_tok_s=None if older is None else older.times.tok_s,
        tok_s=row.tok_s,
        ratio=ratio,
        missing=missing,
        differences=() if older is None else older.conditions.differences(now),
        run=None if older is None else older.run,
        limit=None if fail_above is None else 1 - fail_above / 100,
    )


def row_title(name: RowName) -> str:
    """The name of a row in a sentence: `tg128 batch 4`."""
    test, batch_size, tp = name
    return f"{test} batch {batch_size}" + (f" tp {tp}" if tp > 1 else "")
