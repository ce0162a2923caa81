"""Results of `bench` as a table, Markdown, CSV, JSON and a chart.

With several ranks there is a table of their speed-up, with an older record one of the ratios to it.
"""

import csv
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from itertools import groupby
from typing import Any, Final, TextIO

from gptfast_cli.core.bench.comparison import ROW_SCHEMA, SCHEMA, Comparison, Ratio, RowComparison, row_title
from gptfast_cli.core.bench.record import Bench, BenchRow, Scaling, scaling
from gptfast_cli.core.bench.throughput import RankNumbers
from gptfast_cli.core.drafts.report import Interval
from gptfast_cli.render.charts.bars import BarGroup, BarRow, grouped_bars
from gptfast_cli.render.charts.svg import shortened, standalone
from gptfast_cli.render.json import Keys, to_document, write_document
from gptfast_cli.render.numbers import count, digits, duration, machine_line, size
from gptfast_cli.render.terminal import (
    COLUMNS,
    GAP,
    Table,
    aligned,
    code,
    markdown_lines,
    printable,
    wrapped,
    write_dim,
)

_NUMBERS = ("tok/s", "± sd", "median", "GB/s", "MBU", "memory")
_SCALING = ("test", "batch", "tp", "speedup", "least", "most", "of the ideal")
_COMPARISON = ("test", "batch", "older", "now", "ratio", "95 % interval", "")


def write_table(bench: Bench, stream: TextIO) -> None:
    """Write the table for a terminal; a row that failed has its error in place of numbers."""
    write_dim(_model_line(bench), stream)
    for table in (list(_table(bench)), list(_scaling_table(bench)), list(_comparison_table(bench))):
        stream.write("\n" + "".join(f"{line}\n" for line in table) if table else "")
    stream.write("\n")
    write_dim(machine_line(bench.environment), stream)
    write_dim(measurement_line(bench), stream)
    stream.flush()


def headings(bench: Bench) -> tuple[str, ...]:
    """Those of `cells`."""
    return ("test", "batch", "tp", *_NUMBERS, "collectives") if bench.has_ranks else ("test", "batch", *_NUMBERS)


def cells(row: BenchRow, bench: Bench) -> tuple[str, ...]:
    """The cells of a row: test, batch size and ranks, then the numbers; a failed row has none."""
    about = (row.test, str(row.batch_size), *((str(row.tp),) * bench.has_ranks))
    if row.tok_s is None:
        return about
    return (
        *about,
        digits(row.tok_s.mean),
        "" if row.tok_s.sd is None else digits(row.tok_s.sd),
        digits(row.tok_s.median),
        "" if row.gbps is None else digits(row.gbps),
        "" if row.mbu is None else f"{row.mbu:.0%}",
        "" if row.peak_memory_bytes is None else size(row.peak_memory_bytes),
        *((_collectives(row.ranks),) * bench.has_ranks),
    )


def schemes_of(scheme: str, head_scheme: str) -> str:
    """The schemes of layers and head."""
    # else the name says it, as in int4-g32-head-plain
    return scheme if head_scheme in scheme else f"{scheme} layers, {head_scheme} head"


def measurement_line(bench: Bench) -> str:
    """Backend, bandwidth, number of repetitions, seed, and the times outside the measurement: load and compile."""
    return "; ".join(_measurements(bench))


def _model_line(bench: Bench) -> str:
    schemes = schemes_of(bench.scheme, bench.head_scheme)
    kept = "" if bench.kv_dtype == bench.environment.dtype else f"; {bench.kv_dtype} keys and values"
    return f"{bench.model}: {count(bench.n_params)} parameters, {schemes}, {size(bench.n_bytes)}{kept}"


def _measurements(bench: Bench) -> Iterator[str]:
    yield f"{bench.environment.backend} backend"
    if bench.bandwidth is not None:
        reads = bench.bandwidth
        span = f"{digits(reads.min_gbps)} to {digits(reads.max_gbps)}"
        yield f"memory reads {digits(reads.median_gbps)} GB/s ({span})"
    done = [len(row.repetitions) for row in bench.rows if row.error is None]
    if bench.is_interrupted:
        yield f"interrupted after {min(done, default=0)} of {bench.n_rounds} repetitions"
    else:
        yield f"{bench.n_rounds} repetition{'' if bench.n_rounds == 1 else 's'} each, interleaved"
    yield f"seed {bench.seed}"
    yield f"load {duration(bench.load_s)}"
    if bench.compile_s:
        yield "compile " + ", ".join(f"{duration(seconds)} (batch {n})" for n, seconds in bench.compile_s.items())


def _table(bench: Bench) -> Iterator[str]:
    heading, *lines = aligned(_named_rows(headings(bench), [cells(row, bench) for row in bench.rows]))
    yield heading
    for row, line in zip(bench.rows, lines, strict=True):
        yield line if row.error is None else _shortened(f"{line}{GAP}{printable(row.error)}")


def _scaling_table(bench: Bench) -> Iterator[str]:
    gains = list(scaling(bench.rows))
    if gains:
        yield from aligned(_named_rows(_SCALING, [_gain(gain) for gain in gains]))


def _comparison_table(bench: Bench) -> Iterator[str]:
    comparison = bench.comparison
    if comparison is None:
        return
    yield from wrapped(f"tok/s compared with {comparison.file}")
    names = ("test", "batch", "tp", *_COMPARISON[2:]) if bench.has_ranks else _COMPARISON
    table = Table(names, tuple(_compared(row, bench) for row in comparison.rows), "<" + ">" * (len(names) - 2) + "<")
    yield from map(_shortened, aligned(table))
    for run in dict.fromkeys(row.run for row in comparison.rows if row.run is not None):
        yield from wrapped(f"older: {run}")
    for difference in dict.fromkeys(each for row in comparison.rows for each in row.differences):
        yield from wrapped(f"Not measured under the same conditions: {difference}.")


def _compared(row: RowComparison, bench: Bench) -> tuple[str, ...]:
    return (
        row.test,
        str(row.batch_size),
        *((str(row.tp),) * bench.has_ranks),
        "" if row.older_tok_s is None else digits(row.older_tok_s),
        "" if row.tok_s is None else digits(row.tok_s),
        "" if row.ratio is None else f"{row.ratio.value:.3f}x",
        "" if row.ratio is None else _interval(row.ratio),
        row.missing or _verdict(row),
    )


def _interval(ratio: Ratio) -> str:
    if ratio.low is None or ratio.high is None:
        return "(few repetitions)"
    return f"{ratio.low:.3f} to {ratio.high:.3f}"


def _verdict(row: RowComparison) -> str:
    """What the interval shows: of the limit where there is one, else of which is faster."""
    ratio = row.ratio
    assert ratio is not None
    if row.limit is not None:
        passed = "too slow" if row.exceeds_limit else "ok"
        return f"{passed}, unclear" if row.is_unclear else passed
    if ratio.low is None or ratio.high is None or ratio.low <= 1 <= ratio.high:
        return "no clear difference"
    return "faster" if ratio.value > 1 else "slower"


_MOST_NAMED: Final = 2  # rows in an error message, which has at most five lines


def slower_than_allowed(comparison: Comparison) -> tuple[str, str]:
    """The message and the hint of an error about the rows that are slower than --fail-above allows."""
    failing = comparison.failing
    slower = f"More than {comparison.fail_above:g} % slower than in {comparison.file}"
    lines = [f"{slower}: {len(failing)} of {len(comparison.rows)} rows."]
    lines += map(_loss, failing[:_MOST_NAMED])
    if len(failing) > _MOST_NAMED:
        lines.append(f"and {len(failing) - _MOST_NAMED} more, which are marked in the table.")
    unclear = any(row.is_unclear for row in failing)
    return "\n".join(lines), "Measure again with more repetitions, such as --reps 20." if unclear else ""


def _loss(row: RowComparison) -> str:
    name = row_title((row.test, row.batch_size, row.tp))
    if row.ratio is None or row.limit is None:
        return f"{name}: {row.missing}."
    loss = f"{name}: {row.ratio.value:.3f}x of the older speed"
    if row.ratio.low is None or row.ratio.high is None:
        return f"{loss}; too few repetitions to tell it from noise."
    spans = " spans the limit: it may be noise" if row.is_unclear else ""
    return f"{loss}; 95 % interval {_interval(row.ratio)}{spans}."


def _gain(gain: Scaling) -> tuple[str, ...]:
    ratios = (f"{ratio:.2f}x" for ratio in (gain.speedup, gain.least, gain.most))
    return gain.test, str(gain.batch_size), f"{gain.base} to {gain.tp}", *ratios, f"{gain.efficiency:.0%}"


def _collectives(ranks: Sequence[RankNumbers]) -> str:
    """The share of the time in collectives: the lowest of all ranks to the highest."""
    shares = [rank.collective_share for rank in ranks if rank.collective_share is not None]
    ends = dict.fromkeys(f"{share:.0%}" for share in (min(shares), max(shares))) if shares else ()
    return " to ".join(ends)


def _named_rows(headings: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Table:
    return Table(headings, tuple(rows), "<" + ">" * (len(headings) - 1))


def _shortened(line: str) -> str:
    return line if len(line) <= COLUMNS else line[: COLUMNS - 1] + "\N{HORIZONTAL ELLIPSIS}"


_ABOUT = ("gptfast", "commit", "torch", "device", "cpu", "gpu", "threads", "dtype", "backend", "date")
"""The fields of the environment in a line of CSV."""


def write_json(bench: Bench, command: str, stream: TextIO) -> None:
    """Write the whole record as one document."""
    write_document(SCHEMA, document(bench, command), stream)


def write_json_lines(bench: Bench, command: str, stream: TextIO) -> None:
    """Write each row as a line that stands alone."""
    for row in _rows(bench):
        write_document(ROW_SCHEMA, {**row, **_about(bench, command)}, stream)


def write_csv(bench: Bench, command: str, stream: TextIO) -> None:
    """Write a line for each row; what was not measured is empty."""
    about = asdict(bench.environment)
    lines = [
        {**_flat(row), "command": command, "seed": bench.seed, **{name: about[name] for name in _ABOUT}}
        for row in _rows(bench)
    ]
    writer = csv.DictWriter(stream, lines[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)


def write_markdown(bench: Bench, command: str, stream: TextIO) -> None:
    """Write a table as GitHub shows it, and a line about where it was measured and by what command."""
    names = ("model", "scheme", "KV", *headings(bench))
    rows = [
        (row.model, row.scheme, row.kv_dtype, *cells(row, bench), *((row.error,) if row.error else ()))
        for row in bench.rows
    ]
    if bench.comparison is not None:
        n_columns = len(names)
        names += ("older", "ratio", "95 % interval")
        compared = [_compared(row, bench)[-5:] for row in bench.comparison.rows]
        rows = [
            (*row, *[""] * (n_columns - len(row)), older, ratio, interval or note)
            for row, (older, _, ratio, interval, note) in zip(rows, compared, strict=True)
        ]
    for line in markdown_lines(Table(names, tuple(rows), "<<<<" + ">" * (len(names) - 4))):
        stream.write(line + "\n")
    about = f"{machine_line(bench.environment)}; {measurement_line(bench)}"
    stream.write(f"\n{code(command)}: {about}\n")


WRITERS: Final[dict[str, Callable[[Bench, str, TextIO], None]]] = {
    "csv": write_csv,
    "json": write_json,
    "jsonl": write_json_lines,
    "md": write_markdown,
}
"""By the name that `--output` takes."""


_KEYS: Final[Keys] = {
    Bench: (
        "environment model scheme head_scheme kv_dtype n_params bytes=n_bytes seed load_s compile=compile_s bandwidth "
        "reps=n_rounds interrupted=is_interrupted"
    ),
    Comparison: "file fail_above",
    RowComparison: "older_tok_s ratio+range missing differences run exceeds_limit unclear=is_unclear",
}


def document(bench: Bench, command: str) -> dict[str, Any]:
    """The whole record as JSON values; `command` is the command line."""
    gains = [to_document(gain) for gain in scaling(bench.rows)]
    about = _about(bench, command)
    if bench.comparison is not None:
        about["comparison"] = to_document(bench.comparison, _KEYS)
    return {**about, "rows": _rows(bench), "scaling": gains}


def _about(bench: Bench, command: str) -> dict[str, Any]:
    return {"command": command, **to_document(bench, _KEYS)}


def _rows(bench: Bench) -> list[dict[str, Any]]:
    rows = [to_document(row) | {"tok_s_per_sequence": _per_sequence(row)} for row in bench.rows]
    if bench.comparison is not None:
        for row, compared in zip(rows, bench.comparison.rows, strict=True):
            row["comparison"] = to_document(compared, _KEYS)
    return rows


def _per_sequence(row: BenchRow) -> dict[str, float | None] | None:
    if row.tok_s is None:
        return None
    return {name: None if value is None else value / row.batch_size for name, value in asdict(row.tok_s).items()}


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    return dict(_flat_items(row))


def _flat_items(row: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in row.items():
        match name:
            case "tok_s" | "tok_s_per_sequence":
                spread = value or {}
                yield from ((f"{name}_{which}", spread.get(which)) for which in ("mean", "sd", "median"))
            case "ranks":
                shares = [rank["collective_share"] for rank in value]
                yield "collective_share", max((share for share in shares if share is not None), default=None)
            case "comparison":
                low, high = value["ratio_range"] or (None, None)
                yield from (("older_tok_s", value["older_tok_s"]), ("ratio", value["ratio"]))
                yield from (("ratio_low", low), ("ratio_high", high))
            case "repetitions":
                yield name, " ".join(map(repr, value))
            case _:
                yield name, value


def chart(bench: Bench) -> str:
    """A bar for the median speed of each row, with its lowest and highest repetition, as an SVG file."""
    compared = [None] * len(bench.rows) if bench.comparison is None else bench.comparison.rows
    above = [_model_line(bench), "tok/s: median, lowest and highest repetition"]
    if bench.comparison is not None:
        above[-1] += f"; orange line: median in {bench.comparison.file}"
    about = [
        line for sentence in (machine_line(bench.environment), measurement_line(bench)) for line in _lines(sentence)
    ]
    groups = [
        BarGroup(test, tuple(_bar(row, before, bench) for row, before in group))
        for test, group in groupby(zip(bench.rows, compared, strict=True), key=lambda pair: pair[0].test)
    ]
    above = [line for sentence in above for line in _lines(sentence)]
    return standalone(grouped_bars(f"Speed of {bench.model}", groups, above, about))


_CHART_COLUMNS: Final = 90  # letters of a line of text in a chart
_CHART_NUMBER: Final = 26  # letters at the end of a bar


def _lines(sentence: str) -> list[str]:
    return textwrap.wrap(sentence, _CHART_COLUMNS)


def _bar(row: BenchRow, compared: RowComparison | None, bench: Bench) -> BarRow:
    name = f"batch {row.batch_size}" + (f", tp {row.tp}" if bench.has_ranks else "")
    older = None if compared is None else compared.older_tok_s
    if row.tok_s is None:
        return BarRow(name, shortened(row.error or "", _CHART_NUMBER), None, older)
    rates = [row.times.n_tokens / seconds for seconds in row.repetitions]
    number = f"{digits(row.tok_s.median)} tok/s"
    if compared is not None and compared.ratio is not None:
        number += f" ({compared.ratio.value:.2f}x)"
    return BarRow(name, number, Interval(row.tok_s.median, min(rates), max(rates)), older)
