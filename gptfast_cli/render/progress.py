"""Progress of a job as plain lines, and the choice between these and the live view."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Self, TextIO, TypeAlias, TypeVar

from gptfast_cli.core.events import Event, Job, Measured, Note, Progress
from gptfast_cli.render.numbers import amount, duration, size, tokens_per_second, value_so_far
from gptfast_cli.render.terminal import printable, shows_escapes


class Status:
    """Follows a generation, or a benchmark, by its events."""

    def __init__(self) -> None:
        self._n_tokens = 0
        self._decoded = 0  # of these, the ones that took a step
        self._decode_seconds = 0.0
        self._n_under_way = 0  # sequences that the last step advanced
        self._n_rounds = 0  # of speculation, each of one sequence
        self._n_accepted = 0  # drafted tokens that they kept
        self._started_at = time.monotonic()
        self.rows: Progress | None = None  # where rows, or the runs of a benchmark, are counted
        self._rows_before = 0  # done when the counting of rows began, by an earlier run

    def add(self, event: object) -> None:
        """Count the work of one event."""
        match event:
            case Measured() if self.counts_runs:
                pass  # runs differ: their speeds have no sum
            case Measured("first token", n_tokens):
                self._n_tokens += n_tokens
            case Measured("decode", n_tokens, seconds, n_sequences, n_rounds, n_accepted):
                self._n_tokens += n_tokens
                self._decoded += n_tokens
                self._n_under_way = n_sequences
                self._decode_seconds += seconds
                self._n_rounds += n_rounds
                self._n_accepted += n_accepted
            case Progress(unit="rows" | "runs"):
                if self.rows is None:
                    self._rows_before = event.done
                    self._started_at = time.monotonic()
                self.rows = event

    @property
    def counts_runs(self) -> bool:
        """Whether this is a benchmark."""
        return self.rows is not None and self.rows.unit == "runs"

    def parts(self) -> list[str]:
        """The status now, piece by piece."""
        elapsed = time.monotonic() - self._started_at
        parts = []
        if self.rows is not None:
            parts.append(amount(self.rows.done, self.rows.total, self.rows.unit))
        if self._decode_seconds:
            parts += [tokens_per_second(self._decoded / self._decode_seconds), f"{self._n_tokens:,} tokens"]
        if self._n_rounds:
            parts.append(f"{self._n_accepted / self._n_rounds:.1f} accepted a round")
        running = [self.rows.task] if self.rows is not None and self.counts_runs else []
        return [*parts, self._time(elapsed), *running]

    def line(self) -> str:
        """The status now, in one line."""
        return " \N{MIDDLE DOT} ".join(self.parts())

    def _time(self, elapsed: float) -> str:
        """The time passed, or, once a first row is done, the time left."""
        if self.rows is None or self.rows.total is None or self.rows.done in (self._rows_before, self.rows.total):
            return duration(elapsed)
        n_left = self.rows.total - self.rows.done
        n_half_done = min(self._n_under_way, n_left) / 2  # rows under way are half done, on average
        n_worked = self.rows.done - self._rows_before + n_half_done
        return f"{duration(elapsed * (n_left - n_half_done) / n_worked)} left"


_SECONDS_BETWEEN_LINES = 5.0
_SECONDS_UNTIL_A_PACE = 0.5


@dataclass(slots=True)
class _Beginning:
    """Progress of a task at its first event, the time of that, and progress at its last event."""

    done: int
    at: float
    last: int


class PlainView:
    """Writes notes as they come, and how far a long task is every few seconds."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._last_line_at = time.monotonic()
        self._status = Status()
        self._began: dict[tuple[str, str | None], _Beginning] = {}  # of each task and part

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def __call__(self, event: Event) -> None:
        """Show one event."""
        match event:
            case Note(text):
                self._write(text)
            case Progress(unit="rows") | Measured():
                self._status.add(event)
                if self._status.rows is not None:
                    self._write_now_and_then(f"generate: {', '.join(self._status.parts())}")
            case Progress(part=str()):
                self._show_part(event)
            case Progress():
                self._write_now_and_then(", ".join([_so_far(event), *self._pace(event)]))

    def _show_part(self, event: Progress) -> None:
        """Write a part when it is done, with its size and rate."""
        paces = list(self._pace(event))
        if event.done == event.total:
            self._write(", ".join([f"{event.part}: {amount(event.done, None, event.unit)}", *paces]))

    def _pace(self, event: Progress) -> Iterator[str]:
        """The rate of bytes and the time left, after the first half second."""
        key = event.task, event.part
        began = self._began.get(key)
        if began is None or event.done < began.last:  # it begins, perhaps for the second time
            began = self._began[key] = _Beginning(event.done, time.monotonic(), event.done)
        began.last = event.done
        elapsed = time.monotonic() - began.at
        if event.done == began.done or elapsed < _SECONDS_UNTIL_A_PACE:
            return
        rate = (event.done - began.done) / elapsed
        if event.unit == "bytes":
            yield f"{size(rate)}/s"
        if event.total is not None and event.done < event.total:
            yield f"{duration((event.total - event.done) / rate)} left"

    def _write_now_and_then(self, line: str) -> None:
        if time.monotonic() - self._last_line_at >= _SECONDS_BETWEEN_LINES:
            self._write(line)
            self._last_line_at = time.monotonic()

    def _write(self, line: str) -> None:
        self._stream.write(f"{printable(line)}\n")
        self._stream.flush()


def _so_far(event: Progress) -> str:
    return f"{event.task}: {amount(event.done, event.total, event.unit)}{value_so_far(event.so_far)}"


T = TypeVar("T")
View: TypeAlias = Callable[[Event], None]


def show(job: Job[T], *views: View) -> T:
    """The job's result, every event having passed through each view in turn.

    Ctrl-C is thrown into the job, at the event where it stands: a job that knows how to stop early returns what it
    has, any other ends in KeyboardInterrupt. However this ends, the job has been closed and has cleaned up.
    """
    with closing(job):
        advance = partial(next, job)
        while True:
            try:
                event = advance()
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]  # StopIteration does not say what it carries
            advance = partial(next, job)
            try:
                for view in views:
                    view(event)
            except KeyboardInterrupt as interrupt:
                advance = partial(job.throw, interrupt)


def progress_view(stream: TextIO, *, quiet: bool) -> AbstractContextManager[View]:
    """The view of everything but the results: live on a terminal, lines elsewhere, nothing when quiet."""
    if quiet:
        return nullcontext(nothing)
    if shows_escapes(stream):
        from gptfast_cli.render.live import LiveView

        return LiveView(stream)

    return PlainView(stream)


def nothing(event: Event) -> None:
    """Show nothing."""
