"""Where typed lines come from: a terminal with editing and history, or a pipe or file as it is."""

import contextlib
import importlib
import sys
from collections.abc import Callable, Iterator
from types import ModuleType, TracebackType
from typing import Protocol, Self, TextIO

from gptfast_cli.core.errors import UsageError
from gptfast_cli.render.line_history import LineHistory
from gptfast_cli.render.terminal import shows_escapes


class Lines(Protocol):
    """A source of lines."""

    def read(self, prompt: str) -> str:
        """The next line without its newline; raises EOFError after the last one."""
        ...

    def remember(self, entry: str) -> None:
        """Let an entry be recalled, now and in later sessions."""
        ...


class PlainLines:
    """Lines as they come; a prompt is shown on stderr where somebody types them."""

    def __init__(self, source: TextIO) -> None:
        self._source = source

    def read(self, prompt: str) -> str:
        """See Lines; raises UsageError for bytes that are not UTF-8."""
        if self._source.isatty():
            sys.stderr.write(prompt)
            sys.stderr.flush()
        line = self._source.buffer.readline()
        if not line:
            raise EOFError
        try:
            return line.decode("utf-8").removesuffix("\n").removesuffix("\r")
        except UnicodeDecodeError as error:
            raise UsageError("A line on stdin is not text in UTF-8.") from error

    def remember(self, entry: str) -> None:
        """Nothing recalls it."""


class EditedLines:
    """Lines typed at a terminal: arrow keys move and recall, Tab completes, and a pasted text is one line.

    The editor is the one that Python was built with: GNU readline, or libedit, which takes a paste line by line.
    """

    def __init__(self, readline: ModuleType, history: LineHistory, complete: Callable[[str], list[str]]) -> None:
        self._readline = readline
        self._history = history
        self._complete = complete

    def __enter__(self) -> Self:
        readline = self._readline
        readline.set_auto_history(False)  # an entry may be several lines
        for entry in self._history.entries():
            readline.add_history(entry)
        readline.set_completer_delims("")
        readline.set_completer(self._nth_completion)
        if "libedit" in (readline.__doc__ or ""):
            readline.parse_and_bind("bind ^I rl_complete")
        else:
            readline.parse_and_bind("tab: complete")
            readline.parse_and_bind(f"set enable-bracketed-paste {'on' if shows_escapes(sys.stdout) else 'off'}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._history.shorten()

    def read(self, prompt: str) -> str:
        """See Lines."""
        return input(prompt)

    def remember(self, entry: str) -> None:
        """See Lines; what is said twice in a row is kept once."""
        readline = self._readline
        n_entries = readline.get_current_history_length()
        if n_entries == 0 or readline.get_history_item(n_entries) != entry:
            readline.add_history(entry)
            self._history.add(entry)

    def _nth_completion(self, line: str, n: int) -> str | None:
        candidates = self._complete(line)
        return candidates[n] if n < len(candidates) else None


@contextlib.contextmanager
def open_lines(history: LineHistory, complete: Callable[[str], list[str]]) -> Iterator[Lines]:
    """The lines of stdin, edited where it is a terminal that shows what is typed."""
    try:
        readline = importlib.import_module("readline")
    except ImportError:  # Windows has none
        readline = None
    if readline is None or not (sys.stdin.isatty() and sys.stdout.isatty()):
        yield PlainLines(sys.stdin)
    else:
        with EditedLines(readline, history, complete) as lines:
            yield lines
