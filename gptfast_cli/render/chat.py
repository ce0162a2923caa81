"""The chat on a terminal: the line editor, its history, keys while an answer runs, and the line of numbers.

One JSON string a line, so that an entry of many lines stays one; an entry is there as soon as it was typed.
"""

import contextlib
import importlib
import json
import os
import secrets
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, Protocol, Self, TextIO

from gptfast_cli.core.errors import UsageError
from gptfast_cli.core.events import Event
from gptfast_cli.core.jobs.chat import Turn
from gptfast_cli.render.numbers import duration, tokens_per_second
from gptfast_cli.render.terminal import DIM, shows_escapes, styled

if sys.platform != "win32":
    import termios


class AnswerKeys:
    """Entered for one answer, and a view of its job: it raises KeyboardInterrupt at the event after a Ctrl-C.

    So an interrupt never falls into the middle of a step, whose half would stay in the KV cache for the next turn.
    """

    def __init__(self, keyboard: TextIO) -> None:
        self._keyboard = keyboard
        self._is_stopping = False
        self._has_stopped = False

    def __enter__(self) -> Self:
        self._old_handler = signal.signal(signal.SIGINT, self._ask_to_stop)
        self._old_mode = _stop_echo(self._keyboard)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._old_mode is not None:
            termios.tcsetattr(self._keyboard, termios.TCSADRAIN, self._old_mode)
        signal.signal(signal.SIGINT, self._old_handler)

    def __call__(self, _: Event) -> None:
        """Raise KeyboardInterrupt, once, where Ctrl-C was pressed since the answer began."""
        if self._is_stopping and not self._has_stopped:
            self._has_stopped = True
            raise KeyboardInterrupt

    def _ask_to_stop(self, *_: object) -> None:
        self._is_stopping = True


def _stop_echo(keyboard: TextIO) -> list[Any] | None:
    """Let a terminal show nothing of what is typed; returns its old mode, or None if it has none."""
    if sys.platform == "win32" or not keyboard.isatty():
        return None
    old = termios.tcgetattr(keyboard)
    silent = [*old]
    silent[3] &= ~termios.ECHO
    termios.tcsetattr(keyboard, termios.TCSADRAIN, silent)
    return old


_OWNER_ONLY = 0o600
_APPEND = os.O_WRONLY | os.O_CREAT | os.O_APPEND
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL


class LineHistory:
    """A file of entries, the newest last. A history that cannot be read or written is no reason to stop."""

    def __init__(self, path: Path, *, most_entries: int = 1000) -> None:
        self._path = path
        self._most_entries = most_entries

    def entries(self) -> list[str]:
        """The entries, the oldest first; lines that are damaged are passed over."""
        return [entry for line in self._lines()[-self._most_entries :] if (entry := _parsed(line))]

    def add(self, entry: str) -> None:
        """Append an entry."""
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            _write(self._path, [json.dumps(entry)], _APPEND)

    def shorten(self) -> None:
        """Drop the oldest entries beyond the bound."""
        lines = self._lines()
        if len(lines) > self._most_entries:
            sibling = self._path.with_name(f".{self._path.name}.{secrets.token_hex(4)}")
            with contextlib.suppress(OSError):
                _write(sibling, lines[-self._most_entries :], _NEW)
                sibling.replace(self._path)

    def _lines(self) -> list[str]:
        try:
            return self._path.read_text(encoding="ascii", errors="replace").splitlines()
        except OSError:
            return []


def _write(path: Path, lines: list[str], flags: int) -> None:
    with os.fdopen(os.open(path, flags, _OWNER_ONLY), "a", encoding="ascii") as file:
        file.writelines(f"{line}\n" for line in lines)


def _parsed(line: str) -> str:
    """The entry of a line; empty for a damaged one."""
    try:
        entry = json.loads(line)
    except ValueError:
        return ""
    return entry if isinstance(entry, str) else ""


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
        """Raises UsageError for bytes that are not UTF-8."""
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
        return input(prompt)

    def remember(self, entry: str) -> None:
        """A line repeated at once is kept once."""
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


def write_turn(turn: Turn, stream: TextIO) -> None:
    """Write the line, `42 tokens · 178 tok/s · TTFT 12.0 ms · context 310 of 2,048`, and what cut the answer short."""
    lines = [" \N{MIDDLE DOT} ".join(_parts(turn)), *_reasons(turn)]
    stream.write("".join(styled(line, DIM, stream) + "\n" for line in lines))
    stream.flush()


def _parts(turn: Turn) -> Iterator[str]:
    yield f"{turn.n_generated:,} token{'' if turn.n_generated == 1 else 's'}"
    if turn.decode_tok_s is not None:
        yield tokens_per_second(turn.decode_tok_s)
    if turn.ttft_s is not None:
        yield f"TTFT {duration(turn.ttft_s)}"
    yield f"context {turn.context_used:,} of {turn.max_context:,}"


def _reasons(turn: Turn) -> Iterator[str]:
    match turn.finish_reason:
        case "interrupted" if turn.is_kept:
            yield "Stopped; the answer is kept as far as it came."
        case "interrupted":
            yield "Stopped before it began; the message is not kept."
        case "length" if not turn.filled_the_context:
            yield "Cut at --max-new-tokens."
