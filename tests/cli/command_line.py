"""The command line as a person uses it: a process of its own, in a home of its own, sometimes in a terminal."""

import contextlib
import errno
import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from cli.warm_start import WarmProcess, WarmServer, fixed_variables, warm_server

ROOT = Path(__file__).parents[2]
INHERITED = ("PATH", "LD_LIBRARY_PATH", "TMPDIR", "GPTFAST_KERNELS")
_TIMEOUT_SECONDS = 60.0


@dataclass(frozen=True)
class CommandLine:
    """How to call a program that behaves as `gptfast`, and the environment to call it in."""

    program: tuple[str, ...]
    environment: Mapping[str, str]

    def start(self, *arguments: str, **options: object) -> "subprocess.Popen[bytes]":
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
        return subprocess.Popen([*self.program, *arguments], env=self.environment, **streams)

    def run(self, *arguments: str, stdin: bytes = b"") -> "subprocess.CompletedProcess[bytes]":
        """Run to the end; in a warm process (see warm_start) where that is as good as a new interpreter."""
        server = self.server()
        if server is None:
            return subprocess.run(
                [*self.program, *arguments],
                env=self.environment,
                input=stdin,
                capture_output=True,
                timeout=_TIMEOUT_SECONDS,
                check=False,
            )
        return self.run_warm(server, *arguments, stdin=stdin)

    def run_warm(self, server: WarmServer, *arguments: str, stdin: bytes = b"") -> "subprocess.CompletedProcess[bytes]":
        (stdin_read, stdin_write), (out_read, out_write), (err_read, err_write) = (os.pipe() for _ in range(3))
        streams = stdin_read, out_write, err_write
        program = [*self.program[1:], *arguments]
        process = server.start(program, self.environment, streams)
        for stream in streams:
            os.close(stream)
        with ThreadPoolExecutor() as pool:
            written = pool.submit(_write_all, stdin_write, stdin)
            stdout, stderr = pool.submit(_read_all, out_read), pool.submit(_read_all, err_read)
            code = process.wait(_TIMEOUT_SECONDS)
            written.result()
            return subprocess.CompletedProcess([*self.program, *arguments], code, stdout.result(), stderr.result())

    def start_silent(self, *arguments: str) -> WarmProcess:
        """Start in a warm process, whose output nobody reads."""
        server = self.server()
        assert server is not None, "this program wants a new interpreter"
        with Path(os.devnull).open("r+b") as nothing:
            return server.start([*self.program[1:], *arguments], self.environment, (nothing.fileno(),) * 3)

    def run_in_terminal(self, *arguments: str, columns: int = 80, rows: int = 24) -> tuple[int, str]:
        """Exit code, and all that the program wrote to a terminal of that size."""
        terminal, program_end = pty.openpty()
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        server, streams = self.server(), (program_end, program_end, program_end)
        process = (
            self.start(*arguments, **dict(zip(("stdin", "stdout", "stderr"), streams, strict=True)))
            if server is None
            else server.start([*self.program[1:], *arguments], self.environment, streams)
        )
        os.close(program_end)
        written = b"".join(iter(lambda: _read(terminal), b""))
        os.close(terminal)
        return process.wait(timeout=_TIMEOUT_SECONDS), written.decode().replace("\r\n", "\n")

    def interrupted_at(self, pattern: bytes, *arguments: str) -> tuple[int, bytes]:
        """Exit code and stdout of a run that gets Ctrl-C once the terminal that is its stderr shows `pattern`."""
        terminal, program_end = pty.openpty()
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        with self.start(*arguments, stderr=program_end) as process, ThreadPoolExecutor() as pool:
            os.close(program_end)
            assert process.stdout is not None
            stdout = pool.submit(process.stdout.read)
            shown, is_sent = b"", False
            while piece := _read(terminal):
                shown += piece
                if not is_sent and re.search(pattern, shown):
                    process.send_signal(signal.SIGINT)
                    is_sent = True
            os.close(terminal)
            return process.wait(_TIMEOUT_SECONDS), stdout.result()

    def with_environment(self, **variables: str) -> "CommandLine":
        return CommandLine(self.program, {**self.environment, **variables})

    def server(self) -> WarmServer | None:
        """The server that can start this program: `gptfast` or a script, without variables that imports read."""
        python, *program = self.program
        is_known = program == ["-m", "gptfast_cli"] or program[0].endswith(".py")
        fixed = fixed_variables(self.environment)
        if python != sys.executable or not is_known or fixed != fixed_variables(_base_environment()):
            return None
        return warm_server(fixed)


def environment_of(home: Path) -> dict[str, str]:
    home.mkdir(exist_ok=True)
    return _base_environment() | {"HOME": str(home)}


def _base_environment() -> dict[str, str]:
    inherited = {name: os.environ[name] for name in INHERITED if name in os.environ}
    return inherited | {"PYTHONPATH": str(ROOT), "TERM": "xterm-256color", "LANG": "C.UTF-8"}


def _write_all(descriptor: int, content: bytes) -> None:
    with contextlib.suppress(BrokenPipeError), open(descriptor, "wb") as stream:
        stream.write(content)


def _read_all(descriptor: int) -> bytes:
    with open(descriptor, "rb") as stream:
        return stream.read()


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError as error:
        if error.errno != errno.EIO:  # how Linux says that the program has left
            raise
        return b""
