"""A benchmark as a table for a person, within 80 columns: the model above it, the machine and the spread below."""

from collections.abc import Iterator
from typing import Final, TextIO

from gptfast_cli.core.measure.record import Bench, BenchRow
from gptfast_cli.render.machine import machine_line
from gptfast_cli.render.numbers import count, digits, duration, size
from gptfast_cli.render.page import COLUMNS, wrapped
from gptfast_cli.render.table import GAP, Table, aligned
from gptfast_cli.render.terminal import printable, styled

HEADINGS: Final = ("test", "batch", "tok/s", "± sd", "median", "GB/s", "MBU", "memory")

_DIM = "2"


def write_table(bench: Bench, stream: TextIO) -> None:
    """Write it; a row that failed has its error in place of numbers."""
    for line in wrapped(_model_line(bench)):
        stream.write(styled(line, _DIM, stream) + "\n")
    stream.write("\n" + "".join(f"{line}\n" for line in _table(bench)) + "\n")
    for line in (*wrapped(machine_line(bench.environment)), *wrapped(measurement_line(bench))):
        stream.write(styled(line, _DIM, stream) + "\n")
    stream.flush()


def cells(row: BenchRow) -> tuple[str, ...]:
    """The numbers of a row that worked, below all headings but the first two; empty where there is none."""
    assert row.tok_s is not None
    return (
        digits(row.tok_s.mean),
        "" if row.tok_s.sd is None else digits(row.tok_s.sd),
        digits(row.tok_s.median),
        "" if row.gbps is None else digits(row.gbps),
        "" if row.mbu is None else f"{row.mbu:.0%}",
        "" if row.peak_memory_bytes is None else size(row.peak_memory_bytes),
    )


def schemes_of(scheme: str, head_scheme: str) -> str:
    """How a model is stored, in a few words."""
    # else the name says it, as in int4-g32-head-plain
    return scheme if head_scheme in scheme else f"{scheme} layers, {head_scheme} head"


def measurement_line(bench: Bench) -> str:
    """What else belongs to the numbers: bandwidth, spread, seed, and the times that are no part of them."""
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
    rows = [(row.test, str(row.batch_size), *(cells(row) if row.error is None else ())) for row in bench.rows]
    table = Table(HEADINGS, tuple(rows), "<" + ">" * (len(HEADINGS) - 1))
    heading, *lines = aligned(table)
    yield heading
    for row, line in zip(bench.rows, lines, strict=True):
        yield line if row.error is None else _shortened(f"{line}{GAP}{printable(row.error)}")


def _shortened(line: str) -> str:
    return line if len(line) <= COLUMNS else line[: COLUMNS - 1] + "\N{HORIZONTAL ELLIPSIS}"
