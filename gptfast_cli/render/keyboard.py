"""What the keys do while an answer streams: Ctrl-C stops it, all others wait unseen for the next prompt."""

import signal
import sys
from types import TracebackType
from typing import Any, Self, TextIO

from gptfast_cli.core.events import Event

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
    """Let a terminal show nothing of what is typed; returns its old mode, or None where it has none."""
    if sys.platform == "win32" or not keyboard.isatty():
        return None
    old = termios.tcgetattr(keyboard)
    silent = [*old]
    silent[3] &= ~termios.ECHO
    termios.tcsetattr(keyboard, termios.TCSADRAIN, silent)
    return old
