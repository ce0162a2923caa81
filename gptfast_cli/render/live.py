"""The live view of a job on a terminal: bars, parts and a status row.

The last row is taken out of the scrolling region (DECSTBM, as VT100 and all since know it), so that text streams,
wraps and scrolls as on a terminal one row shorter. The cursor is saved and restored around each update (DECSC, DECRC);
whoever writes the text keeps it from resting behind the last column, a place that some terminals do not restore.
"""

import os
import time
from functools import cache
from types import TracebackType
from typing import Final, Self, TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars
from rich.table import Column
from rich.text import Text

from gptfast_cli.core.events import Event, Measured, Note, Progress, Record, TextChunk
from gptfast_cli.render.numbers import amount, size, value_so_far
from gptfast_cli.render.progress import Status
from gptfast_cli.render.terminal import printable

_SAVE, _RESTORE = "\x1b7", "\x1b8"
_ERASE_LINE, _UP = "\x1b[2K", "\x1b[1A"
_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"
_WHOLE_SCREEN_SCROLLS = "\x1b[r"
_LEAST_ROWS = 4  # below that, the text needs the row more than we do


class BottomRow:
    """The status row of one terminal, from `open` to `close`."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._rows = 0  # the terminal's height while the row is taken, 0 while it is not

    def open(self) -> None:
        """Take the last row; the cursor must stand at the start of a line."""
        # the line feed makes room where the cursor stands in the last row; elsewhere moving up undoes it
        self._stream.write("\n" + _UP)
        self._take_row()

    def update(self, status: str) -> None:
        """Replace the status, cut to the terminal's width."""
        columns, rows = os.get_terminal_size(self._stream.fileno())
        if rows != self._rows:  # the window was resized
            self._take_row()
        if self._rows:
            line = f"{_at(rows)}{_ERASE_LINE}{_DIM}{status[: columns - 1]}{_PLAIN}"
            self._stream.write(_SAVE + line + _RESTORE)
            self._stream.flush()

    def close(self) -> None:
        """Give the row back, empty."""
        if self._rows:
            self._stream.write(_SAVE + _WHOLE_SCREEN_SCROLLS + _at(self._rows) + _ERASE_LINE + _RESTORE)
            self._stream.flush()
            self._rows = 0

    def _take_row(self) -> None:
        rows = os.get_terminal_size(self._stream.fileno()).lines
        self._rows = rows if rows >= _LEAST_ROWS else 0
        if self._rows:
            self._stream.write(f"{_SAVE}\x1b[1;{rows - 1}r{_RESTORE}")  # setting the region moves the cursor
            self._stream.flush()


def _at(row: int) -> str:
    """Move the cursor to the start of a row."""
    return f"\x1b[{row};1H"


_NAME_COLUMNS = 28


class _Rate(ProgressColumn):
    """Bytes per second over the last updates."""

    def render(self, task: Task) -> Text:
        return Text(f"{size(task.speed)}/s" if task.speed else "")


PART_COLUMNS: Final[tuple[ProgressColumn, ...]] = (
    TextColumn(
        "{task.description}",
        markup=False,
        table_column=Column(no_wrap=True, overflow="ellipsis", max_width=_NAME_COLUMNS),
    ),
    BarColumn(bar_width=10),
    TextColumn("{task.fields[so_far]}", markup=False, table_column=Column(no_wrap=True)),
    _Rate(table_column=Column(no_wrap=True)),
    TimeRemainingColumn(compact=True),
)


_SECONDS_BETWEEN_UPDATES = 0.1
_TASK = (SpinnerColumn(), TextColumn("{task.description}"))


class LiveView:
    """Shows events on stderr, a terminal, without disturbing the text that another view writes to stdout.

    Entered, it shows a spinner at once: before the first event, PyTorch has to be loaded.
    """

    def __init__(self, stream: TextIO) -> None:
        self._console = Console(file=stream, highlight=False, markup=False, emoji=False)
        self._bars: Bars | None = None
        self._status = Status()
        self._bottom_row = BottomRow(stream)
        self._streams_text = False  # the cursor may stand in the middle of a sentence
        self._has_bottom_row = False
        self._updated_at = 0.0
        self._late_notes: list[str] = []
        self._parted: set[str] = set()  # tasks whose parts go on side by side
        self._rows: dict[str, TaskID] = {}  # of parts under way

    def __enter__(self) -> Self:
        self._show_bar("starting", "", None, None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop_bars()
        self._bottom_row.close()
        for note in self._late_notes:
            self._print(note)

    def __call__(self, event: Event) -> None:
        """Show one event."""
        match event:
            case Note(text) if self._streams_text:
                self._late_notes.append(text)  # now it would land in the middle of a sentence
            case Note(text):
                self._print(text)
            case Progress(unit="runs"):  # few, and each is shown: a run may take long
                self._status.add(event)
                self._show_bar("", self._status.line(), event.done, event.total)
            case Measured() if self._status.counts_runs:
                pass
            case Measured() | TextChunk() | Record() | Progress(unit="rows"):
                self._status.add(event)
                self._streams_text |= isinstance(event, TextChunk)
                self._show_status(below_text=isinstance(event, TextChunk | Record))
            case Progress(part=str()):
                self._show_part(event)
            case Progress() if not self._has_bottom_row:
                so_far = amount(event.done, event.total, event.unit) + value_so_far(event.so_far)
                self._show_bar(event.task, so_far, event.done, event.total)

    def _print(self, line: str) -> None:
        self._console.print(printable(line), style="dim", soft_wrap=True)

    def _show_bar(self, task: str, so_far: str, done: int | None, total: int | None) -> None:
        columns = (
            PART_COLUMNS
            if task in self._parted
            else _columns(is_counted=total is not None, counts_rows=self._status.rows is not None)
        )
        if self._bars is None:
            # the streams stay as they are: the text must reach the real stdout
            self._bars = Bars(
                *columns, console=self._console, transient=True, redirect_stdout=False, redirect_stderr=False
            )
            self._bars.add_task("", so_far="")
            self._bars.start()
        self._bars.columns = columns
        if total is not None and self._bars.tasks[0].description != task:  # what was done before has no speed
            self._bars.reset(self._bars.task_ids[0], completed=done or 0, total=total)
        self._bars.update(self._bars.task_ids[0], description=task, so_far=so_far, completed=done, total=total)

    def _show_part(self, event: Progress) -> None:
        """A row for each part under way, below that of the whole."""
        self._parted.add(event.task)
        assert event.part is not None
        if self._bars is None:
            self._show_bar(event.task, "", None, None)
            assert self._bars is not None
        if event.done == event.total:
            if event.part in self._rows:
                self._bars.remove_task(self._rows.pop(event.part))
            return
        if event.part not in self._rows:
            self._rows[event.part] = self._bars.add_task(event.part, so_far="", completed=event.done, total=event.total)
        so_far = amount(event.done, event.total, event.unit)
        self._bars.update(self._rows[event.part], so_far=so_far, completed=event.done, total=event.total)

    def _stop_bars(self) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars = None

    def _show_status(self, *, below_text: bool) -> None:
        if below_text and not self._has_bottom_row:
            self._has_bottom_row = True
            self._stop_bars()
            self._bottom_row.open()
        if time.monotonic() - self._updated_at < _SECONDS_BETWEEN_UPDATES:
            return
        self._updated_at = time.monotonic()
        if self._has_bottom_row:
            self._bottom_row.update(self._status.line())
        elif (rows := self._status.rows) is not None:  # whose records go to a file
            self._show_bar("", self._status.line(), rows.done, rows.total)
        else:  # a model without a tokenizer has no text to stream
            self._show_bar("generating", self._status.line(), None, None)


@cache  # a new spinner would begin anew
def _columns(*, is_counted: bool, counts_rows: bool) -> tuple[ProgressColumn, ...]:
    so_far = TextColumn("{task.fields[so_far]}")
    if counts_rows:
        return (SpinnerColumn(), BarColumn(bar_width=10), so_far)  # which says itself what time is left
    if is_counted:
        return (*_TASK, BarColumn(bar_width=24), so_far, TimeRemainingColumn(compact=True))
    return (*_TASK, so_far, TimeElapsedColumn())
