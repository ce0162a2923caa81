"""Generated texts on a terminal as they come, several samples one below another.

A character in the last column leaves the cursor there, its move to the next line still to come. Not every terminal
(tmux for one) remembers that when the cursor is saved and restored, and the next character would take the place of
the last. So the move is finished at once: a space goes to the next line, and a backspace makes room for the text.

To a pipe or a file goes the generated text and nothing else, byte for byte, ended by a newline. On a terminal the
prompt stands before it, dimmed, as does the reasoning of a thinking model, and control characters are made visible.

Samples grow side by side, and only one of them can be streamed: the first that is not over. The others wait.
"""

import os
from types import TracebackType
from typing import Self, TextIO

from rich.cells import cell_len

from gptfast_cli.core.events import Event, Finished, Prompt, TextChunk
from gptfast_cli.render.terminal import DIM, printable, shows_escapes, styled

_TAB_COLUMNS = 8
_FINISH_MOVE = " \b"


class Cursor:
    """Follows text on lines of `columns` columns, from the start of a line."""

    def __init__(self, columns: int) -> None:
        self._columns = columns
        self._column = 0  # cells left of the cursor; `columns` while its move to the next line is still to come
        self._has_moved = False  # ahead of the text: it stands in a line that no character has begun

    def placed(self, text: str) -> str:
        """The characters to write for printable text, so that the cursor never rests after the last column."""
        if not text:
            return ""
        if self._has_moved and text[0] == "\n":
            text = text[1:]  # that move has been made
        for character in text:
            self._follow(character)
        self._has_moved = self._column == self._columns
        if not self._has_moved:
            return text
        self._column = 0
        return text + _FINISH_MOVE

    def _follow(self, character: str) -> None:
        match character:
            case "\n":
                self._column = 0
            case "\t":
                stop = (self._column // _TAB_COLUMNS + 1) * _TAB_COLUMNS
                self._column = min(stop, self._columns - 1)  # a tab stays in its line
            case _:
                width = cell_len(character)
                fits = self._column + width <= self._columns
                self._column = self._column + width if fits else width


_SHOWN_PROMPT_CHARACTERS = 600


class SamplesView:
    """Writes the samples of one job; leaving it finishes them, also after an error."""

    def __init__(self, stream: TextIO, *, n_samples: int) -> None:
        self._stream = stream
        self._n_samples = n_samples
        self._prompt: Prompt | None = None
        self._streamed = 0  # the sample that is written as it comes
        self._has_started = False  # that sample's text
        self._waiting: dict[int, list[TextChunk]] = {}
        self._is_reasoning = False  # what was written last
        self._finished: set[int] = set()
        self._at_line_start = True
        self._cursor = _cursor(stream) if shows_escapes(stream) else None  # None: nothing is drawn below the text

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, BrokenPipeError):
            return  # nobody reads on
        while self._has_started or self._waiting:
            self._go_on_to_the_next()

    def __call__(self, event: Event) -> None:
        """Write the text of one event, or keep it until its turn comes."""
        match event:
            case Prompt():
                self._prompt = event
            case TextChunk(sample) if sample == self._streamed:
                self._start()
                self._write_chunk(event)
            case TextChunk(sample):
                self._waiting.setdefault(sample, []).append(event)
            case Finished(sample):
                self._finished.add(sample)
                while self._streamed in self._finished:
                    self._start()
                    self._go_on_to_the_next()

    def _go_on_to_the_next(self) -> None:
        """End the streamed sample and write what has waited for that."""
        self._end_line()
        self._streamed += 1
        self._has_started = False
        self._is_reasoning = False
        for chunk in self._waiting.pop(self._streamed, ()):
            self._start()
            self._write_chunk(chunk)

    def _start(self) -> None:
        if self._has_started:
            return
        self._has_started = True
        if self._n_samples > 1:
            self._write_line(f"--- sample {self._streamed + 1} of {self._n_samples} ---")
        if self._prompt is not None and self._stream.isatty():
            shown = _tail(self._prompt.text) + ("" if self._prompt.continues else "\n")
            self._at_line_start = not self._prompt.continues
            self._stream.write(styled(self._placed(printable(shown)), DIM, self._stream))

    def _write_chunk(self, chunk: TextChunk) -> None:
        """Write a chunk; on a terminal reasoning is dimmed, and the answer after it begins a line."""
        text = chunk.text
        if self._is_reasoning and not chunk.is_reasoning and self._stream.isatty():
            text = text if self._at_line_start or text.startswith("\n") else f"\n{text}"
        self._is_reasoning = chunk.is_reasoning
        self._write(text, dim=chunk.is_reasoning)

    def _write(self, text: str, *, dim: bool = False) -> None:
        if text:
            self._at_line_start = text.endswith("\n")  # before the write, which Ctrl-C may cut short
            if self._stream.isatty():
                text = self._placed(printable(text))
                text = styled(text, DIM, self._stream) if dim else text
            self._stream.write(text)
            self._stream.flush()

    def _placed(self, text: str) -> str:
        return text if self._cursor is None else self._cursor.placed(text)

    def _write_line(self, line: str) -> None:
        self._stream.write(styled(line, DIM, self._stream) + "\n")

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
