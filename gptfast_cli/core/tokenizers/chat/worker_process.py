"""The worker as its parent sees it: asked by a line, ended when it takes too long, started again when it is needed."""

import contextlib
import os
import subprocess
import sys
import threading
from pathlib import Path

from gptfast_cli.core.errors import GptFastError

MOST_ANSWER_BYTES = (6 << 24) + 100  # 2^24 characters, each at worst written as \u0000

_SCRIPT = Path(__file__).with_name("worker.py")
_START_SECONDS = 60.0  # a tenth of one is usual
# What Python needs to start and to find jinja2, and what the date in a template depends on: no tokens, keys or others'
# variables, as a template is a program from anyone.
_ENVIRONMENT = (
    *("PYTHONHOME", "PYTHONPATH", "PYTHONUSERBASE", "PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX"),
    *("HOME", "PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT", "USERPROFILE", "APPDATA"),
    *("LANG", "LC_ALL", "LC_CTYPE", "TZ"),
)


class WorkerProcess:
    """A process that is started at once, so that it loads while its parent does other things.

    After an answer that did not come it is gone, and the next request starts another.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = _started()
        self._is_ready = False

    def ask(self, request: bytes, *, seconds: float) -> bytes:
        """The line that answers a line.

        Raises TimeoutError where it takes longer than `seconds`, in which a start does not count, ChildProcessError
        where the process ends instead, and GptFastError where none can be started.
        """
        try:
            if self._process is None:
                self._process, self._is_ready = _started(), False
            if not self._is_ready:
                _wait_for(self._process)
                self._is_ready = True
            return _exchange(self._process, request, seconds)
        except BaseException:  # Ctrl-C too: a late answer must not be taken for that to the next request
            self.close()
            raise

    def close(self) -> None:
        """End the process, whatever it is doing."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()  # until it is gone, and the pipes are closed
            self._process = None


def _started() -> subprocess.Popen[bytes]:
    return subprocess.Popen(  # noqa: S603 (our own script; -P keeps its folder from being imported from)
        [sys.executable, "-P", str(_SCRIPT)],
        env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        process_group=0,  # where a terminal's Ctrl-C does not reach it: the parent decides
    )


def _wait_for(process: subprocess.Popen[bytes]) -> None:
    """Return when the process has said that it is ready."""
    try:
        _exchange(process, b"", _START_SECONDS)
    except (TimeoutError, ChildProcessError) as error:
        raise GptFastError("The process that renders chat templates did not start.", "Is jinja2 installed?") from error


def _exchange(process: subprocess.Popen[bytes], request: bytes, seconds: float) -> bytes:
    assert process.stdin is not None
    assert process.stdout is not None
    is_late = threading.Event()

    def end() -> None:
        is_late.set()
        process.kill()  # which also ends a write to it, or a read from it, that is under way

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        with contextlib.suppress(BrokenPipeError):  # it has ended, as the missing answer will tell
            process.stdin.write(request)
            process.stdin.flush()
        answer = process.stdout.readline(MOST_ANSWER_BYTES)
    finally:
        timer.cancel()
        timer.join()
    if is_late.is_set():
        raise TimeoutError
    if not answer.endswith(b"\n"):
        raise ChildProcessError
    return answer
