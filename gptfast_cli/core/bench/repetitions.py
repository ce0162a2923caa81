"""Timing rows of a benchmark against one another: interleaved, so that all of them meet the machine's changing moods.

Rounds of all rows follow one another, A B C A B C, and before and after every row the read bandwidth is measured. The
first round warms up and counts for nothing. A row that failed has an error in place of times, whatever it had measured.
An interrupt ends it early, with what has been measured.

Where ranks share a row's work, the others stand by: they wait until it is their turn again.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Literal, TypeAlias

from gptfast_cli.core.bench.bandwidth import Bandwidth
from gptfast_cli.core.bench.environment import Clock, PeakMemoryReader
from gptfast_cli.core.bench.throughput import ALL_ALONE, RankNumbers, RankSubset
from gptfast_cli.core.errors import GptFastError, UsageError, is_out_of_memory
from gptfast_cli.core.events import (
    Job,
    Measured,
    Note,
    Progress,
)
from gptfast_cli.core.models.process_group import ProcessGroup

Work: TypeAlias = Callable[[], int | None]
"""Does what is to be timed; returns the bytes that it read, or None where bandwidth is not what limits it."""

OUT_OF_MEMORY = "OOM"
INTERRUPTED = "interrupted"
_STANDS_BY = "done by other ranks"

_ERRORS = (GptFastError, MemoryError, RuntimeError)  # ours, and what PyTorch raises


@dataclass(frozen=True, slots=True)
class TimedRow:
    """One line of a benchmark; `n_tokens` is what it processes each time, all sequences together.

    prepare: makes ready for a repetition, unmeasured, and returns the work to be timed; whatever only that work
             holds is freed after it, so that rows do not share memory
    rank_subset:    the ranks that share it
    other_model_bytes: bytes that each of these holds of no use to it, as are those of other models
    """

    name: str
    phase: Literal["prefill", "decode"]
    n_tokens: int
    prepare: Callable[[], Work]
    rank_subset: RankSubset = ALL_ALONE
    other_model_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Repetition:
    """A row's work, done once.

    n_bytes:           that all ranks read
    bandwidth:         in bytes a second, of all ranks: the mean of what was measured before and after it
    peak_memory_bytes: most that a rank used at once, making ready and working
    ranks:             each by itself, where there are several
    """

    seconds: float
    n_bytes: int | None
    bandwidth: float
    peak_memory_bytes: int = 0
    ranks: tuple[RankNumbers, ...] = ()


@dataclass(frozen=True, slots=True)
class Timed:
    """A row that worked each time, at least once; fewer times than the others where all was interrupted."""

    repetitions: tuple[Repetition, ...]


@dataclass(frozen=True, slots=True)
class Failed:
    """A row that did not: OUT_OF_MEMORY, INTERRUPTED before it was timed, or the message of its error."""

    error: str


@dataclass(frozen=True, slots=True)
class Spread:
    """Several values of one quantity; `sd` is the sample standard deviation, None of a single value."""

    mean: float
    sd: float | None
    median: float


def spread(values: Sequence[float]) -> Spread:
    """Sum up one value or more."""
    sd = statistics.stdev(values) if len(values) > 1 else None
    return Spread(statistics.fmean(values), sd, statistics.median(values))


def measured(
    rows: Sequence[TimedRow], n_rounds: int, *, now: Clock, probe: Callable[[], Bandwidth], memory: PeakMemoryReader
) -> Job[tuple[Timed | Failed, ...]]:
    """Warm up every row, then time each once a round; returns what became of each, in their order."""
    repetitions: list[list[Repetition]] = [[] for _ in rows]
    failures: dict[int, Failed] = {}
    n_turns = (1 + n_rounds) * len(rows)
    try:
        for turn in range(n_turns):
            n_round, index = divmod(turn, len(rows))
            row = rows[index]
            yield Progress(row.name, turn, n_turns, "runs")
            row.rank_subset.everyone.broadcast(None)  # a rank that is ahead would disturb the others
            if index in failures:
                continue
            match _attempt(row, now, probe, memory):
                case Failed() as failure:
                    failures[index] = failure
                    yield Note(f"{row.name}: {failure.error}")
                case Repetition() as repetition if n_round > 0:  # the first round warms up
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
        return Failed(_STANDS_BY)
    # of several ranks one that fails by itself ends all: the others would wait for it
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
    before = probe()  # only now: to make ready may have taken long
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
    """The first line of an error, or that there was not enough memory."""
    if is_out_of_memory(error):
        return OUT_OF_MEMORY
    return next(iter(str(error).splitlines()), type(error).__name__)
