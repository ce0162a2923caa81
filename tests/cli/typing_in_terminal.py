"""Somebody who types into a program in a terminal, and waits for what it shows."""

import contextlib
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Iterator
from dataclasses import dataclass

from cli.command_line import CommandLine

UP, LEFT, CTRL_C, CTRL_D, TAB = "\x1b[A", "\x1b[D", "\x03", "\x04", "\t"
PASTED, PASTE_ENDED = "\x1b[200~", "\x1b[201~"

_PATIENCE_SECONDS = 20.0


@dataclass
class Typist:
    """The terminal's other end."""

    process: "subprocess.Popen[bytes]"
    terminal: int
    _written: bytes = b""
    _n_seen: int = 0

    @property
    def shown(self) -> str:
        """All that the program wrote, but for status rows, which stand between saving and restoring the cursor."""
        text = self._written.decode(errors="replace").replace("\r\n", "\n")
        return re.sub(r"\x1b7.*?(\x1b8|$)", "", text, flags=re.DOTALL)

    def type(self, keys: str) -> None:
        os.write(self.terminal, keys.encode())

    def enter(self, line: str) -> None:
        self.type(line + "\r")

    def see(self, text: str) -> str:
        """Wait for a text to be shown after what was seen before; returns what was shown up to its end."""
        end = time.monotonic() + _PATIENCE_SECONDS
        while (start := self.shown.find(text, self._n_seen)) < 0:
            assert time.monotonic() < end, f"{text!r} is not shown: {self.shown[self._n_seen :]!r}"
            assert self._read(end - time.monotonic()), f"it ended without {text!r}: {self.shown[self._n_seen :]!r}"
        before, self._n_seen = self._n_seen, start + len(text)
        return self.shown[before : self._n_seen]

    def pause(self) -> None:
        """Let the line editor come to rest: it notices a signal that comes while it draws only with the next key."""
        time.sleep(0.2)

    def mode(self) -> list[object]:
        """How the terminal treats what is typed."""
        return termios.tcgetattr(self.terminal)

    def ends(self) -> int:
        """Wait for the program to end; returns its exit code."""
        while self._read(_PATIENCE_SECONDS):
            pass
        return self.process.wait(timeout=_PATIENCE_SECONDS)

    def _read(self, patience_seconds: float) -> bool:
        if not select.select([self.terminal], [], [], max(patience_seconds, 0))[0]:
            return False
        try:
            written = os.read(self.terminal, 65536)
        except OSError:  # how Linux says that the program has left
            return False
        self._written += written
        return bool(written)


@contextlib.contextmanager
def typing_into(program: CommandLine, *arguments: str, columns: int = 80, rows: int = 24) -> Iterator[Typist]:
    """The program in a terminal of that size, whose Ctrl-C reaches it."""
    terminal, program_end = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    process = program.start(
        *arguments,
        stdin=program_end,
        stdout=program_end,
        stderr=program_end,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(program_end)
    try:
        yield Typist(process, terminal)
    finally:
        os.close(terminal)
        process.kill()
        process.wait()
