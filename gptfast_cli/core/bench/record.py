"""The rows of a benchmark: speed against the roofline, spread over repetitions, scaling over ranks.

A decode step reads the weights and the KV cache once, so its memory bandwidth utilization is

    MBU = bytes read / time / read bandwidth

It is computed for each repetition with the bandwidth measured just before and after it.
"""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from gptfast_cli.core.bench.comparison import Comparison, RowTimes
from gptfast_cli.core.bench.environment import Environment
from gptfast_cli.core.bench.repetitions import INTERRUPTED, OUT_OF_MEMORY, Failed, Repetition, Spread, Timed, spread
from gptfast_cli.core.bench.throughput import RankNumbers, medians
from gptfast_cli.core.bench.workload import Case
from gptfast_cli.core.device import dtype_name
from gptfast_cli.core.engine.load import LoadedModel


@dataclass(frozen=True, slots=True)
class RooflineSpeed:
    """Speed of a row over its repetitions.

    tok_s: tokens per second of all sequences
    gbps:  median bytes read per second, GB = 1e9 bytes; None for prefill, which is not memory-bound
    mbu:   median share of the measured bandwidth; None likewise
    """

    tok_s: Spread
    gbps: float | None
    mbu: float | None


def roofline_speed(n_tokens: int, repetitions: Sequence[Repetition]) -> RooflineSpeed:
    """Speed of a row that processes `n_tokens` in each of its repetitions (at least one)."""
    rates = [(times.n_bytes / times.seconds, times.bandwidth) for times in repetitions if times.n_bytes is not None]
    return RooflineSpeed(
        tok_s=spread([n_tokens / times.seconds for times in repetitions]),
        gbps=statistics.median(rate / 1e9 for rate, _ in rates) if rates else None,
        mbu=statistics.median(rate / bandwidth for rate, bandwidth in rates) if rates else None,
    )


@dataclass(frozen=True, slots=True)
class BenchRow:
    """A case and its numbers, None if it failed; see Case, RooflineSpeed and Repetition.

    tp:          ranks that share the model
    ranks:       medians for each rank; empty for one
    repetitions: seconds of each
    error:       why it failed
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

    @property
    def times(self) -> RowTimes:
        """What a comparison with an older record needs of it."""
        n_tokens = self.batch_size * (self.n_prompt + self.n_gen)
        return RowTimes((self.test, self.batch_size, self.tp), n_tokens, self.repetitions, self.error)


@dataclass(frozen=True, slots=True)
class MemoryBandwidth:
    """Read bandwidth measured before and after each row, GB/s with GB = 1e9 bytes."""

    median_gbps: float
    min_gbps: float
    max_gbps: float


@dataclass(frozen=True, slots=True)
class Bench:
    """The record of a benchmark.

    scheme, head_scheme: of most parameters, and of the head
    n_bytes:             of the weights in memory on all ranks
    kv_dtype:            of the KV cache
    compile_s:           compile time by batch size, not part of other times; None if nothing was compiled
    load_s:              load time of the model on the most ranks
    bandwidth:           None if no row was measured
    n_rounds:            requested repetitions
    comparison:          with an older record, if one was given
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
    comparison: Comparison | None = None

    @property
    def has_ranks(self) -> bool:
        """Whether any row uses several ranks."""
        return any(row.tp > 1 for row in self.rows)

    @property
    def is_interrupted(self) -> bool:
        """Whether repetitions are missing for another reason than a failure."""
        return any(len(row.repetitions) < self.n_rounds for row in self.rows if row.error in (None, INTERRUPTED))

    @property
    def has_numbers(self) -> bool:
        """Whether any row has numbers."""
        return any(row.error is None for row in self.rows)

    @property
    def is_out_of_memory(self) -> bool:
        """Whether every row ran out of memory."""
        return all(row.error == OUT_OF_MEMORY for row in self.rows)


def memory_bandwidth(bytes_per_second: Sequence[float]) -> MemoryBandwidth | None:
    """Median, minimum and maximum of the probes; None without any."""
    if not bytes_per_second:
        return None
    rates = [rate / 1e9 for rate in bytes_per_second]
    return MemoryBandwidth(statistics.median(rates), min(rates), max(rates))


def bench_row(case: Case, tp: int, outcome: Timed | Failed, loaded: LoadedModel) -> BenchRow:
    """The outcome of a case on `tp` ranks as a row of the record."""
    times = outcome.repetitions if isinstance(outcome, Timed) else ()
    speed = roofline_speed(case.total_tokens, times) if times else None
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
        tok_s=speed.tok_s if speed else None,
        gbps=speed.gbps if speed else None,
        mbu=speed.mbu if speed else None,
        peak_memory_bytes=max((repetition.peak_memory_bytes for repetition in times), default=None),
        ranks=medians([repetition.ranks for repetition in times]),
        repetitions=tuple(repetition.seconds for repetition in times),
        error=outcome.error if isinstance(outcome, Failed) else None,
    )


@dataclass(frozen=True, slots=True)
class Scaling:
    """Speed-up of a case on `tp` ranks over `base`, the fewest ranks that it was measured on.

    speedup:     median ratio of consecutive repetitions
    least, most: minimum and maximum of these ratios
    efficiency:  speedup / (tp / base)
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
    """Scaling of every case measured on several numbers of ranks, in the order of the rows."""
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
