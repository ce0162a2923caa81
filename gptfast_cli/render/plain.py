"""Progress as lines, for a stderr that is a file, a pipe, or a terminal without escapes."""

import time
from types import TracebackType
from typing import Self, TextIO

from gptfast_cli.core.events import Event, Measured, Note, Progress
from gptfast_cli.render.numbers import amount
from gptfast_cli.render.status import Status
from gptfast_cli.render.terminal import printable

_SECONDS_BETWEEN_LINES = 5.0


class PlainView:
    """Writes notes as they come, and how far a long task is every few seconds."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._last_line_at = time.monotonic()
        self._status = Status()

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
                self._write_now_and_then(f"{event.task}: {amount(event.done, event.total, event.unit)}")

    def _write_now_and_then(self, line: str) -> None:
        if time.monotonic() - self._last_line_at >= _SECONDS_BETWEEN_LINES:
            self._write(line)
            self._last_line_at = time.monotonic()

    def _write(self, line: str) -> None:
        self._stream.write(f"{printable(line)}\n")
        self._stream.flush()
