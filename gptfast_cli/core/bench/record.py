"""The rows of a benchmark: speed against the roofline, spread over repetitions, scaling over ranks.

A decode step reads the weights and the keys and values once, whatever it computes from them, so that

    MBU = bytes read / time / read bandwidth

is the share of the possible that it reaches. It is taken of each repetition with the bandwidth measured around it.
"""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from gptfast_cli.core.bench.environment import Environment
from gptfast_cli.core.bench.repetitions import (
    INTERRUPTED,
    OUT_OF_MEMORY,
    Failed,
    Repetition,
    Spread,
    Timed,
    spread,
)
from gptfast_cli.core.bench.throughput import RankNumbers, medians
from gptfast_cli.core.bench.workload import Case
from gptfast_cli.core.device import dtype_name
from gptfast_cli.core.engine.load import LoadedModel


@dataclass(frozen=True, slots=True)
class RooflineSpeed:
    """What the repetitions of a row say.

    tok_s: tokens a second, of all sequences together
    gbps:  median of the bytes read a second, in GB = 1e9 bytes; mbu: median of their share of the measured bandwidth,
           0..1. Both None where bandwidth is not what limits
    """

    tok_s: Spread
    gbps: float | None
    mbu: float | None


def roofline_speed(n_tokens: int, repetitions: Sequence[Repetition]) -> RooflineSpeed:
    """The speed of a row that processes `n_tokens` in each of its repetitions, of which there is at least one."""
    rates = [(times.n_bytes / times.seconds, times.bandwidth) for times in repetitions if times.n_bytes is not None]
    return RooflineSpeed(
        tok_s=spread([n_tokens / times.seconds for times in repetitions]),
        gbps=statistics.median(rate / 1e9 for rate, _ in rates) if rates else None,
        mbu=statistics.median(rate / bandwidth for rate, bandwidth in rates) if rates else None,
    )


@dataclass(frozen=True, slots=True)
class BenchRow:
    """A case and its numbers, which are None where it failed; see Case, Speed and Repetition.

    tp:          ranks that share the model; ranks: the numbers of each, medians, where there are several
    repetitions: seconds of each
    error:       why there are no numbers
    """

    test: str
    phase: Literal["prefill", "decode"]
    model: str
    scheme: str
    kv_dtype: str
    tp: int
    batch_size: int
    n_prompt: int
    n_gen: int
    depth: int
    tok_s: Spread | None
    gbps: float | None
    mbu: float | None
    peak_memory_bytes: int | None
    ranks: tuple[RankNumbers, ...]
    repetitions: tuple[float, ...]
    error: str | None


@dataclass(frozen=True, slots=True)
class MemoryBandwidth:
    """What the probes before and after each row read, in GB/s with GB = 1e9 bytes."""

    median_gbps: float
    min_gbps: float
    max_gbps: float


@dataclass(frozen=True, slots=True)
class Bench:
    """The record of a benchmark.

    scheme, head_scheme: of most parameters, and of the head; n_bytes: of all weights in memory, of all ranks
    kv_dtype:            that keys and values are kept in
    compile_s:           by batch size, apart from all other times; None where nothing was compiled
    load_s:              of one model, the one that most ranks share
    bandwidth:           None where no row came so far
    n_rounds:            repetitions that were asked for
    """

    environment: Environment
    model: str
    scheme: str
    head_scheme: str
    kv_dtype: str
    n_params: int
    n_bytes: int
    seed: int
    load_s: float
    compile_s: dict[int, float] | None
    bandwidth: MemoryBandwidth | None
    n_rounds: int
    rows: tuple[BenchRow, ...]

    @property
    def has_ranks(self) -> bool:
        """Whether several share the model in any row."""
        return any(row.tp > 1 for row in self.rows)

    @property
    def is_interrupted(self) -> bool:
        """Whether repetitions are missing that no failure of their row explains."""
        return any(len(row.repetitions) < self.n_rounds for row in self.rows if row.error in (None, INTERRUPTED))

    @property
    def has_numbers(self) -> bool:
        """Whether any row worked."""
        return any(row.error is None for row in self.rows)

    @property
    def is_out_of_memory(self) -> bool:
        """Whether no row found enough memory."""
        return all(row.error == OUT_OF_MEMORY for row in self.rows)


def memory_bandwidth(bytes_per_second: Sequence[float]) -> MemoryBandwidth | None:
    """Sum up what probes read."""
    if not bytes_per_second:
        return None
    rates = [rate / 1e9 for rate in bytes_per_second]
    return MemoryBandwidth(statistics.median(rates), min(rates), max(rates))


def bench_row(case: Case, tp: int, outcome: Timed | Failed, loaded: LoadedModel) -> BenchRow:
    """What became of a case on so many ranks, as a row of the record."""
    times = outcome.repetitions if isinstance(outcome, Timed) else ()
    of_row = roofline_speed(case.total_tokens, times) if times else None
    return BenchRow(
        test=case.name,
        phase=case.phase,
        model=loaded.name,
        scheme=loaded.scheme,
        kv_dtype=dtype_name(loaded.model.kv_dtype),
        tp=tp,
        batch_size=case.batch_size,
        n_prompt=case.n_tokens if case.phase == "prefill" else 0,
        n_gen=case.n_tokens if case.phase == "decode" else 0,
        depth=case.depth,
        tok_s=of_row.tok_s if of_row else None,
        gbps=of_row.gbps if of_row else None,
        mbu=of_row.mbu if of_row else None,
        peak_memory_bytes=max((repetition.peak_memory_bytes for repetition in times), default=None),
        ranks=medians([repetition.ranks for repetition in times]),
        repetitions=tuple(repetition.seconds for repetition in times),
        error=outcome.error if isinstance(outcome, Failed) else None,
    )


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
