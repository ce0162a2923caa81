"""Results of `bench` as a table, Markdown, CSV and JSON; with several ranks also a table of their speed-up."""

import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any, Final, TextIO

from gptfast_cli.core.bench.record import Bench, BenchRow, Scaling, scaling
from gptfast_cli.core.bench.throughput import RankNumbers
from gptfast_cli.render.json import Keys, to_document, write_document
from gptfast_cli.render.numbers import (
    count,
    digits,
    duration,
    machine_line,
    size,
)
from gptfast_cli.render.tables import COLUMNS, GAP, Table, aligned, code, markdown_lines, wrapped
from gptfast_cli.render.terminal import printable, styled

_NUMBERS = ("tok/s", "± sd", "median", "GB/s", "MBU", "memory")
_SCALING = ("test", "batch", "tp", "speedup", "least", "most", "of the ideal")
_DIM = "2"


def write_table(bench: Bench, stream: TextIO) -> None:
    """Write the table for a terminal; a row that failed has its error in place of numbers."""
    for line in wrapped(_model_line(bench)):
        stream.write(styled(line, _DIM, stream) + "\n")
    for table in (list(_table(bench)), list(_scaling_table(bench))):
        stream.write("\n" + "".join(f"{line}\n" for line in table) if table else "")
    stream.write("\n")
    for line in (*wrapped(machine_line(bench.environment)), *wrapped(measurement_line(bench))):
        stream.write(styled(line, _DIM, stream) + "\n")
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
    """Bandwidth, number of repetitions, seed, and the times outside the measurement: load and compile."""
    return "; ".join(_measurements(bench))


def _model_line(bench: Bench) -> str:
    schemes = schemes_of(bench.scheme, bench.head_scheme)
    kept = "" if bench.kv_dtype == bench.environment.dtype else f"; {bench.kv_dtype} keys and values"
    return f"{bench.model}: {count(bench.n_params)} parameters, {schemes}, {size(bench.n_bytes)}{kept}"


def _measurements(bench: Bench) -> Iterator[str]:
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


_ABOUT = ("gptfast", "commit", "torch", "device", "cpu", "gpu", "threads", "dtype", "date")
"""The fields of the environment in a line of CSV."""


def write_json(bench: Bench, command: str, stream: TextIO) -> None:
    """Write the whole record as one document."""
    write_document("gptfast.bench/1", document(bench, command), stream)


def write_json_lines(bench: Bench, command: str, stream: TextIO) -> None:
    """Write each row as a line that stands alone."""
    for row in _rows(bench):
        write_document("gptfast.bench.row/1", {**row, **_about(bench, command)}, stream)


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
}


def document(bench: Bench, command: str) -> dict[str, Any]:
    """The whole record as JSON values; `command` is the command line."""
    gains = [to_document(gain) for gain in scaling(bench.rows)]
    return {**_about(bench, command), "rows": _rows(bench), "scaling": gains}


def _about(bench: Bench, command: str) -> dict[str, Any]:
    return {"command": command, **to_document(bench, _KEYS)}


def _rows(bench: Bench) -> list[dict[str, Any]]:
    return [to_document(row) | {"tok_s_per_sequence": _per_sequence(row)} for row in bench.rows]


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
            case "repetitions":
                yield name, " ".join(map(repr, value))
            case _:
                yield name, value
