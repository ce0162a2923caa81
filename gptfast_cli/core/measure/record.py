"""The record of a benchmark: its rows, and all that has to be known to judge them."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from gptfast_cli.core.decode.subject import Subject
from gptfast_cli.core.device import dtype_name
from gptfast_cli.core.measure.cases import Case
from gptfast_cli.core.measure.environment import Environment
from gptfast_cli.core.measure.ranks import RankNumbers, medians
from gptfast_cli.core.measure.repetitions import INTERRUPTED, OUT_OF_MEMORY, Failed, Spread, Timed
from gptfast_cli.core.measure.roofline import speed


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


def bench_row(case: Case, tp: int, outcome: Timed | Failed, subject: Subject) -> BenchRow:
    """What became of a case on so many ranks, as a row of the record."""
    times = outcome.repetitions if isinstance(outcome, Timed) else ()
    of_row = speed(case.total_tokens, times) if times else None
    return BenchRow(
        test=case.name,
        phase=case.phase,
        model=subject.name,
        scheme=subject.scheme,
        kv_dtype=dtype_name(subject.model.kv_dtype),
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
