"""The text of the samples, written to stdout as it comes.

To a pipe or a file goes the generated text and nothing else, byte for byte, ended by a newline. On a terminal the
prompt stands before it, dimmed, and control characters are made visible.

Samples of one batch grow side by side, and only one of them can be streamed: the first. The others follow when the
batch is done, which shows in text of a later batch or in the end.
"""

import os
from types import TracebackType
from typing import Self, TextIO

from gptfast_cli.core.events import Event, Text
from gptfast_cli.render.cursor import Cursor
from gptfast_cli.render.terminal import printable, shows_escapes, styled

_DIM = "2"
_SHOWN_PROMPT_CHARACTERS = 600


class SamplesView:
    """Writes the samples of one job; leaving it finishes them, also after an error."""

    def __init__(self, stream: TextIO, *, prompt: str, n_samples: int, batch_size: int) -> None:
        self._stream = stream
        self._prompt = prompt
        self._n_samples = n_samples
        self._batch_size = batch_size
        self._streamed = -1  # the sample that is written as it comes; -1 before the first
        self._waiting: dict[int, str] = {}
        self._at_line_start = True
        self._cursor = _cursor(stream) if shows_escapes(stream) else None  # None: nothing is drawn below the text

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, BrokenPipeError):
            return  # nobody reads on
        if self._streamed >= 0:
            self._finish_batch()

    def __call__(self, event: Event) -> None:
        """Write the text of one event, or keep it until its turn comes."""
        if not isinstance(event, Text):
            return
        first_of_batch = event.sample // self._batch_size * self._batch_size
        if first_of_batch > self._streamed:
            if self._streamed >= 0:
                self._finish_batch()
            self._start(first_of_batch)
        if event.sample == self._streamed:
            self._write(event.text)
        else:
            self._waiting[event.sample] = self._waiting.get(event.sample, "") + event.text

    def _start(self, sample: int) -> None:
        self._streamed = sample
        if self._n_samples > 1:
            self._write_line(f"--- sample {sample + 1} of {self._n_samples} ---")
        if self._prompt and self._stream.isatty():
            self._at_line_start = False
            self._stream.write(styled(self._placed(printable(_tail(self._prompt))), _DIM, self._stream))

    def _finish_batch(self) -> None:
        """End the streamed sample's last line and write those that were waiting for it."""
        self._end_line()
        end = min(self._streamed // self._batch_size * self._batch_size + self._batch_size, self._n_samples)
        for sample in range(self._streamed + 1, end):
            self._start(sample)
            self._write(self._waiting.pop(sample, ""))
            self._end_line()

    def _write(self, text: str) -> None:
        if text:
            self._at_line_start = text.endswith("\n")  # before the write, which Ctrl-C may cut short
            self._stream.write(self._placed(printable(text)) if self._stream.isatty() else text)
            self._stream.flush()

    def _placed(self, text: str) -> str:
        return text if self._cursor is None else self._cursor.placed(text)

    def _write_line(self, line: str) -> None:
        self._stream.write(styled(line, _DIM, self._stream) + "\n")

    def _end_line(self) -> None:
        if not self._at_line_start:
            self._write("\n")


def _cursor(terminal: TextIO) -> Cursor | None:
    columns = os.get_terminal_size(terminal.fileno()).columns
    return Cursor(columns) if columns else None  # a terminal without a window is 0 wide


def _tail(prompt: str) -> str:
    """The prompt, or the end of a long one: enough to read the text as its continuation."""
    if len(prompt) <= _SHOWN_PROMPT_CHARACTERS:
        return prompt
    return "\N{HORIZONTAL ELLIPSIS}" + prompt[-_SHOWN_PROMPT_CHARACTERS:]
