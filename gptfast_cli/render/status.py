"""What is said of work under way: rows or runs, tokens, tokens per second, and the time that it takes."""

import time

from gptfast_cli.core.events import Measured, Progress
from gptfast_cli.render.numbers import amount, duration, tokens_per_second


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
        """What has passed; what is left, once rows have told how long one takes, and until the last is done."""
        if self.rows is None or self.rows.total is None or self.rows.done in (self._rows_before, self.rows.total):
            return duration(elapsed)
        n_left = self.rows.total - self.rows.done
        n_half_done = min(self._n_under_way, n_left) / 2  # rows under way are half done, on average
        n_worked = self.rows.done - self._rows_before + n_half_done
        return f"{duration(elapsed * (n_left - n_half_done) / n_worked)} left"
