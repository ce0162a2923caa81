"""Progress as lines, for a stderr that is a file, a pipe, or a terminal without escapes."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Self, TextIO

from gptfast_cli.core.events import Event, Measured, Note, Progress
from gptfast_cli.render.numbers import amount, duration, size, value_so_far
from gptfast_cli.render.status import Status
from gptfast_cli.render.terminal import printable

_SECONDS_BETWEEN_LINES = 5.0
_SECONDS_UNTIL_A_PACE = 0.5


@dataclass(slots=True)
class _Beginning:
    """How far a task was when it was first heard of, when that was, and how far it was last."""

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
        """Tell of a part when it is done: what it is, and how fast it came."""
        paces = list(self._pace(event))
        if event.done == event.total:
            self._write(", ".join([f"{event.part}: {amount(event.done, None, event.unit)}", *paces]))

    def _pace(self, event: Progress) -> Iterator[str]:
        """The rate of bytes, and what is left of a task at the pace that it has had here, once there is one."""
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
