"""The command line as a person uses it: a process of its own, in a home of its own, sometimes in a terminal."""

import errno
import fcntl
import os
import pty
import struct
import subprocess
import termios
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
INHERITED = ("PATH", "LD_LIBRARY_PATH", "TMPDIR", "GPTFAST_KERNELS")


@dataclass(frozen=True)
class CommandLine:
    """How to call a program that behaves as `gptfast`, and the environment to call it in."""

    program: tuple[str, ...]
    environment: Mapping[str, str]

    def start(self, *arguments: str, **options: object) -> "subprocess.Popen[bytes]":
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
        return subprocess.Popen([*self.program, *arguments], env=self.environment, **streams)

    def run(self, *arguments: str, stdin: bytes = b"") -> "subprocess.CompletedProcess[bytes]":
        return subprocess.run(
            [*self.program, *arguments], env=self.environment, input=stdin, capture_output=True, timeout=60, check=False
        )

    def run_in_terminal(self, *arguments: str, columns: int = 80, rows: int = 24) -> tuple[int, str]:
        """Exit code, and all that the program wrote to a terminal of that size."""
        terminal, program_end = pty.openpty()
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        process = self.start(*arguments, stdin=program_end, stdout=program_end, stderr=program_end)
        os.close(program_end)
        written = b"".join(iter(lambda: _read(terminal), b""))
        os.close(terminal)
        return process.wait(timeout=60), written.decode().replace("\r\n", "\n")

    def with_environment(self, **variables: str) -> "CommandLine":
        return CommandLine(self.program, {**self.environment, **variables})


def environment_of(home: Path) -> dict[str, str]:
    home.mkdir(exist_ok=True)
    inherited = {name: os.environ[name] for name in INHERITED if name in os.environ}
    return inherited | {"HOME": str(home), "PYTHONPATH": str(ROOT), "TERM": "xterm-256color", "LANG": "C.UTF-8"}


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError as error:
        if error.errno != errno.EIO:  # how Linux says that the program has left
            raise
        return b""
