"""A benchmark as a table for a person, within 80 columns: the model above it, the machine and the spread below.

Where several ranks share the model, a second table says what they gain.
"""

from collections.abc import Iterator, Sequence
from typing import TextIO

from gptfast_cli.core.measure.ranks import RankNumbers
from gptfast_cli.core.measure.record import Bench, BenchRow
from gptfast_cli.core.measure.scaling import Scaling, scaling
from gptfast_cli.render.machine import machine_line
from gptfast_cli.render.numbers import count, digits, duration, size
from gptfast_cli.render.page import COLUMNS, wrapped
from gptfast_cli.render.table import GAP, Table, aligned
from gptfast_cli.render.terminal import printable, styled

_NUMBERS = ("tok/s", "± sd", "median", "GB/s", "MBU", "memory")
_SCALING = ("test", "batch", "tp", "speedup", "least", "most", "of the ideal")
_DIM = "2"


def write_table(bench: Bench, stream: TextIO) -> None:
    """Write it; a row that failed has its error in place of numbers."""
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
    """A row of the table: what it is, and its numbers where it worked; empty where there is none."""
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
        *((_waited(row.ranks),) * bench.has_ranks),
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
    heading, *lines = aligned(_numbers_behind_a_name(headings(bench), [cells(row, bench) for row in bench.rows]))
    yield heading
    for row, line in zip(bench.rows, lines, strict=True):
        yield line if row.error is None else _shortened(f"{line}{GAP}{printable(row.error)}")


def _scaling_table(bench: Bench) -> Iterator[str]:
    gains = list(scaling(bench.rows))
    if gains:
        yield from aligned(_numbers_behind_a_name(_SCALING, [_gain(gain) for gain in gains]))


def _gain(gain: Scaling) -> tuple[str, ...]:
    ratios = (f"{ratio:.2f}x" for ratio in (gain.speedup, gain.least, gain.most))
    return gain.test, str(gain.batch_size), f"{gain.base} to {gain.tp}", *ratios, f"{gain.efficiency:.0%}"


def _waited(ranks: Sequence[RankNumbers]) -> str:
    """The time in collectives, from the rank that spends the least of it there to the one that spends the most."""
    shares = [rank.collective_share for rank in ranks if rank.collective_share is not None]
    ends = dict.fromkeys(f"{share:.0%}" for share in (min(shares), max(shares))) if shares else ()
    return " to ".join(ends)


def _numbers_behind_a_name(headings: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Table:
    return Table(headings, tuple(rows), "<" + ">" * (len(headings) - 1))


def _shortened(line: str) -> str:
    return line if len(line) <= COLUMNS else line[: COLUMNS - 1] + "\N{HORIZONTAL ELLIPSIS}"
