"""Progress on a terminal: a bar or a spinner while something loads, a status row while text streams."""

import time
from types import TracebackType
from typing import Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from gptfast_cli.core.events import Event, Measured, Note, Progress, Text
from gptfast_cli.render.bottom_row import BottomRow
from gptfast_cli.render.numbers import amount, duration, tokens_per_second
from gptfast_cli.render.terminal import printable

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
        self._streams_text = False
        self._updated_at = 0.0
        self._late_notes: list[str] = []

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
            case Progress() if not self._streams_text:
                self._show_bar(event.task, amount(event.done, event.total, event.unit), event.done, event.total)
            case Measured() | Text():
                self._status.add(event)
                self._show_status(starts=isinstance(event, Text) and not self._streams_text)

    def _print(self, line: str) -> None:
        self._console.print(printable(line), style="dim", soft_wrap=True)

    def _show_bar(self, task: str, so_far: str, done: int | None, total: int | None) -> None:
        if self._bars is None:
            # the streams stay as they are: the text must reach the real stdout
            self._bars = Bars(
                *_columns(bar=total is not None),
                console=self._console,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._bars.add_task("", so_far="")
            self._bars.start()
        self._bars.columns = _columns(bar=total is not None)
        self._bars.update(self._bars.task_ids[0], description=task, so_far=so_far, completed=done, total=total)

    def _stop_bars(self) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars = None

    def _show_status(self, *, starts: bool) -> None:
        if starts:
            self._streams_text = True
            self._stop_bars()
            self._bottom_row.open()
        if time.monotonic() - self._updated_at < _SECONDS_BETWEEN_UPDATES:
            return
        self._updated_at = time.monotonic()
        if self._streams_text:
            self._bottom_row.update(self._status.line())
        else:  # a model without a tokenizer has no text to stream
            self._show_bar("generating", self._status.line(), None, None)


class Status:
    """What the status row says of a text under way: tokens, tokens per second, time."""

    def __init__(self) -> None:
        self._n_tokens = 0
        self._decoded = 0  # of these, the ones that took a step
        self._decode_seconds = 0.0
        self._started_at = time.monotonic()

    def add(self, event: Measured | Text) -> None:
        """Count the work of one event."""
        if isinstance(event, Measured) and event.phase != "prefill":
            self._n_tokens += event.n_tokens
        if isinstance(event, Measured) and event.phase == "decode":
            self._decoded += event.n_tokens
            self._decode_seconds += event.seconds

    def line(self) -> str:
        """The status now."""
        elapsed = duration(time.monotonic() - self._started_at)
        if not self._decode_seconds:
            return elapsed
        rate = tokens_per_second(self._decoded / self._decode_seconds)
        return f"{rate} \N{MIDDLE DOT} {self._n_tokens:,} tokens \N{MIDDLE DOT} {elapsed}"


def _columns(*, bar: bool) -> tuple[ProgressColumn, ...]:
    so_far = TextColumn("{task.fields[so_far]}")
    if bar:
        return (*_TASK, BarColumn(bar_width=24), so_far, TimeRemainingColumn(compact=True))
    return (*_TASK, so_far, TimeElapsedColumn())
