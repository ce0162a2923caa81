"""Progress as lines, for a stderr that is a file, a pipe, or a terminal without escapes."""

import time
from collections.abc import Iterator
from types import TracebackType
from typing import Self, TextIO

from gptfast_cli.core.events import Event, Measured, Note, Progress
from gptfast_cli.render.numbers import amount, duration
from gptfast_cli.render.status import Status
from gptfast_cli.render.terminal import printable

_SECONDS_BETWEEN_LINES = 5.0


class PlainView:
    """Writes notes as they come, and how far a long task is every few seconds."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._last_line_at = time.monotonic()
        self._status = Status()
        self._began: tuple[Progress, float] | None = None  # the first event of the task under way, and when it came

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
            case Progress():
                self._write_now_and_then(", ".join([_so_far(event), *self._time_left(event)]))

    def _time_left(self, event: Progress) -> Iterator[str]:
        """What is left of a task at the pace that it has had here, once there is one."""
        if self._began is None or self._began[0].task != event.task:
            self._began = event, time.monotonic()
        first, began_at = self._began
        if event.total is not None and first.done < event.done < event.total:
            elapsed = time.monotonic() - began_at
            yield f"{duration(elapsed * (event.total - event.done) / (event.done - first.done))} left"

    def _write_now_and_then(self, line: str) -> None:
        if time.monotonic() - self._last_line_at >= _SECONDS_BETWEEN_LINES:
            self._write(line)
            self._last_line_at = time.monotonic()

    def _write(self, line: str) -> None:
        self._stream.write(f"{printable(line)}\n")
        self._stream.flush()


def _so_far(event: Progress) -> str:
    return f"{event.task}: {amount(event.done, event.total, event.unit)}"
