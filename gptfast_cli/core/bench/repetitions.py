"""Repeated timings of benchmark rows, interleaved so that machine noise affects all rows equally.

Rounds of all rows follow one another (A B C A B C), and the read bandwidth is measured before and after every row. The
first round is warm-up. A failed row has an error in place of times, even if earlier repetitions worked. An interrupt
ends the measurement with the repetitions so far.

With several numbers of ranks, ranks that do not take part in a row wait until their next turn.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Literal, TypeAlias

from gptfast_cli.core.bench.bandwidth import Bandwidth
from gptfast_cli.core.bench.environment import Clock, PeakMemoryReader
from gptfast_cli.core.bench.throughput import ALL_ALONE, RankNumbers, RankSubset
from gptfast_cli.core.errors import GptFastError, UsageError, is_out_of_memory
from gptfast_cli.core.events import Job, Measured, Note, Progress
from gptfast_cli.core.models.process_group import ProcessGroup

Work: TypeAlias = Callable[[], int | None]
"""Runs the timed work; returns the bytes that it read, or None if it is not memory-bound."""

OUT_OF_MEMORY = "OOM"
INTERRUPTED = "interrupted"
_OTHER_RANKS = "done by other ranks"

_ERRORS = (GptFastError, MemoryError, RuntimeError)  # our errors, and PyTorch's


@dataclass(frozen=True, slots=True)
class TimedRow:
    """One row of a benchmark.

    n_tokens:          tokens of all sequences that a repetition processes
    prepare:           unmeasured setup of a repetition; returns the work to time. Memory held only by that work is
                       freed after it
    rank_subset:       ranks that run it
    other_model_bytes: bytes that each of these ranks holds for other models, not counted as its peak memory
    """

    name: str
    phase: Literal["prefill", "decode"]
    n_tokens: int
    prepare: Callable[[], Work]
    rank_subset: RankSubset = ALL_ALONE
    other_model_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Repetition:
    """One timed repetition.

    n_bytes:           bytes read by all ranks
    bandwidth:         bytes per second of all ranks, mean of the probes before and after
    peak_memory_bytes: maximum over ranks, setup included
    ranks:             numbers of each rank; empty for one
    """

    seconds: float
    n_bytes: int | None
    bandwidth: float
    peak_memory_bytes: int = 0
    ranks: tuple[RankNumbers, ...] = ()


@dataclass(frozen=True, slots=True)
class Timed:
    """A row that worked; it has fewer repetitions than asked for after an interrupt."""

    repetitions: tuple[Repetition, ...]


@dataclass(frozen=True, slots=True)
class Failed:
    """A failed row: OUT_OF_MEMORY, INTERRUPTED before its first repetition, or an error message."""

    error: str


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean, sample standard deviation (None of a single value) and median."""

    mean: float
    sd: float | None
    median: float


def spread(values: Sequence[float]) -> Spread:
    """Spread of at least one value."""
    sd = statistics.stdev(values) if len(values) > 1 else None
    return Spread(statistics.fmean(values), sd, statistics.median(values))


def measured(
    rows: Sequence[TimedRow], n_rounds: int, *, now: Clock, probe: Callable[[], Bandwidth], memory: PeakMemoryReader
) -> Job[tuple[Timed | Failed, ...]]:
    """Warm up every row, then time each row once a round; returns the outcomes in the order of the rows."""
    repetitions: list[list[Repetition]] = [[] for _ in rows]
    failures: dict[int, Failed] = {}
    n_turns = (1 + n_rounds) * len(rows)
    try:
        for turn in range(n_turns):
            n_round, index = divmod(turn, len(rows))
            row = rows[index]
            yield Progress(row.name, turn, n_turns, "runs")
            row.rank_subset.everyone.broadcast(None)  # barrier: a rank that runs ahead would disturb the others
            if index in failures:
                continue
            match _attempt(row, now, probe, memory):
                case Failed() as failure:
                    failures[index] = failure
                    yield Note(f"{row.name}: {failure.error}")
                case Repetition() as repetition if n_round > 0:  # the first round is warm-up
                    repetitions[index].append(repetition)
                    yield Measured(row.phase, row.n_tokens, repetition.seconds)
        yield Progress("done", n_turns, n_turns, "runs")
    except KeyboardInterrupt:
        yield Note("Interrupted: these are the repetitions that were measured.")
    return tuple(failures.get(index) or _outcome(times) for index, times in enumerate(repetitions))


def _outcome(repetitions: Sequence[Repetition]) -> Timed | Failed:
    return Timed(tuple(repetitions)) if repetitions else Failed(INTERRUPTED)


def _attempt(
    row: TimedRow, now: Clock, probe: Callable[[], Bandwidth], memory: PeakMemoryReader
) -> Repetition | Failed:
    group = row.rank_subset.group
    if group is None:
        return Failed(_OTHER_RANKS)
    # with several ranks, an error on one of them ends all: the others would wait for it
    errors = _ERRORS if group.size == 1 else UsageError
    try:
        with row.rank_subset.threads():
            return _timed(row, group, now, probe, memory)
    except errors as error:
        return Failed(reason(error))


def _timed(
    row: TimedRow, group: ProcessGroup, now: Clock, probe: Callable[[], Bandwidth], memory: PeakMemoryReader
) -> Repetition:
    memory.reset()
    work = row.prepare()
    before = probe()  # after the setup, which may take long
    waited, begin = group.seconds, now()
    n_bytes = work()
    seconds, waited = now() - begin, group.seconds - waited
    peak_bytes = max(0, memory.peak_bytes() - row.other_model_bytes)
    after = probe()
    bandwidth = (before.bytes_per_second + after.bytes_per_second) / 2
    if group.size == 1:
        return Repetition(seconds, n_bytes, bandwidth, peak_bytes)
    rate = None if n_bytes is None else n_bytes / seconds / 1e9
    own = RankNumbers(group.rank, peak_bytes, rate, waited / seconds)
    n_bytes_of_each, bandwidths, numbers = zip(*group.exchange([n_bytes, bandwidth, asdict(own)]), strict=True)
    ranks = tuple(RankNumbers(**each) for each in numbers)
    total = None if n_bytes is None else sum(n_bytes_of_each)
    return Repetition(seconds, total, sum(bandwidths), max(rank.peak_memory_bytes for rank in ranks), ranks)


def reason(error: Exception) -> str:
    """The first line of an error, or OUT_OF_MEMORY."""
    if is_out_of_memory(error):
        return OUT_OF_MEMORY
    return next(iter(str(error).splitlines()), type(error).__name__)
