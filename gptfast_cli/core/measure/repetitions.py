"""Timing rows of a benchmark against one another: interleaved, so that all of them meet the machine's changing moods.

Rounds of all rows follow one another, A B C A B C, and before and after every row the read bandwidth is measured. The
first round warms up and counts for nothing. A row that failed has an error in place of times, whatever it had measured.
An interrupt ends it early, with what has been measured.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from gptfast_cli.core.errors import GptFastError, is_out_of_memory
from gptfast_cli.core.events import Job, Measured, Note, Progress
from gptfast_cli.core.measure.bandwidth import Bandwidth
from gptfast_cli.core.measure.clock import Clock
from gptfast_cli.core.measure.memory import Memory

Work: TypeAlias = Callable[[], int | None]
"""Does what is to be timed; returns the bytes that it read, or None where bandwidth is not what limits it."""

OUT_OF_MEMORY = "OOM"
INTERRUPTED = "interrupted"


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a benchmark; `n_tokens` is what it processes each time, all sequences together.

    prepare: makes ready for a repetition, unmeasured, and returns the work to be timed; whatever only that work
             holds is freed after it, so that rows do not share memory
    """

    name: str
    phase: Literal["prefill", "decode"]
    n_tokens: int
    prepare: Callable[[], Work]


@dataclass(frozen=True, slots=True)
class Repetition:
    """A row's work, done once.

    bandwidth:         in bytes a second: the mean of what was measured before and after it
    peak_memory_bytes: most that was used at once, making ready and working
    """

    seconds: float
    n_bytes: int | None
    bandwidth: float
    peak_memory_bytes: int = 0


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
    rows: Sequence[Row], n_rounds: int, *, now: Clock, probe: Callable[[], Bandwidth], memory: Memory
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


def _attempt(row: Row, now: Clock, probe: Callable[[], Bandwidth], memory: Memory) -> Repetition | Failed:
    try:
        memory.reset()
        work = row.prepare()
        before = probe()  # only now: to make ready may have taken long
        begin = now()
        n_bytes = work()
        seconds = now() - begin
        peak_bytes = memory.peak_bytes()
        after = probe()
    except (GptFastError, MemoryError, RuntimeError) as error:  # ours, and what PyTorch raises
        return Failed(reason(error))
    return Repetition(seconds, n_bytes, (before.bytes_per_second + after.bytes_per_second) / 2, peak_bytes)


def reason(error: Exception) -> str:
    """The first line of an error, or that there was not enough memory."""
    if is_out_of_memory(error):
        return OUT_OF_MEMORY
    return next(iter(str(error).splitlines()), type(error).__name__)
