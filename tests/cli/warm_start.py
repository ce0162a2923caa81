"""A server that starts Python programs by forking a process that has already imported PyTorch.

A command line spends most of its time with imports: two seconds of CPU time for PyTorch and typer. The server imports
them once for all tests of a pytest process. Each program still runs in a process of its own, with its own arguments,
environment, working folder and streams, and it ends as the interpreter ends it: threads, `atexit`, exit code.

What differs from a new interpreter: the modules in PRELOADED are loaded already, the hash seed is the server's, and the
parent is the server. A test about imports, signals or the process itself starts an interpreter (`CommandLine.start`).
"""

import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import runpy
import select
import selectors
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

PRELOADED = ("torch", "numpy", "pydantic.type_adapter", "rich.console", "sentencepiece", "tokenizers", "typer")
READ_AT_IMPORT = {"huggingface_hub", "typer.rich_utils", "gptfast_cli"}
"""Must not be loaded in the server: the first two read the environment when they are imported; the last is tested."""

READ_LATE = ("HOME", "GPTFAST_", "HF_", "AWS_", "FAKE_", "NO_COLOR", "_GPTFAST_")
"""How the names of variables begin that no module in PRELOADED reads."""

_SET_BY_GPTFAST = {"GOMP_SPINCOUNT": "10000"}  # before it imports PyTorch
_MOST_BYTES = 1 << 17
_N_STREAMS = 3


class WarmServer:
    """The client of a server process; programs start in the environment that the server has, except for READ_LATE."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._requests, server_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with server_end:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(server_end.fileno())],
                env={**environment, **_SET_BY_GPTFAST},
                pass_fds=[server_end.fileno()],
            )

    def start(
        self, program: Sequence[str], environment: Mapping[str, str], streams: tuple[int, int, int]
    ) -> "WarmProcess":
        """Start `python -m MODULE ARGUMENTS...` or `python SCRIPT ARGUMENTS...`, without `python`, on three streams."""
        ours, servers = socket.socketpair()
        request = {"program": program, "environment": dict(environment), "folder": str(Path.cwd())}
        with servers:
            socket.send_fds(self._requests, [json.dumps(request).encode()], [*streams, servers.fileno()])
        return WarmProcess(ours)

    def close(self) -> None:
        """End the server; programs that run go on."""
        self._requests.close()
        self._process.wait()


class WarmProcess:
    """A program that the server has started."""

    def __init__(self, status: socket.socket) -> None:
        self._status = status.makefile("rb")
        self._socket = status
        self.pid = int(self._status.readline())

    def has_ended(self) -> bool:
        """Whether its exit code is known."""
        return bool(select.select([self._socket], [], [], 0)[0])

    def kill(self) -> None:
        """Kill it, unless it has ended."""
        if not self.has_ended():
            os.kill(self.pid, signal.SIGKILL)

    def wait(self, timeout: float) -> int:
        """Exit code, or minus the signal that ended it; raises TimeoutError, killing it, after `timeout` s."""
        self._socket.settimeout(timeout)
        try:
            return int(self._status.readline())
        except TimeoutError:
            os.kill(self.pid, signal.SIGKILL)
            raise
        finally:
            self._status.close()
            self._socket.close()


@functools.cache
def warm_server(variables: tuple[tuple[str, str], ...]) -> WarmServer:
    """The server of this pytest process for programs with these variables, which its modules may have read."""
    server = WarmServer(dict(variables))
    atexit.register(server.close)
    return server


def fixed_variables(environment: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """The variables that must be the server's own, because PRELOADED or the interpreter may read them at start."""
    return tuple(sorted((name, value) for name, value in environment.items() if not name.startswith(READ_LATE)))


def _serve(requests: socket.socket) -> list[str] | None:
    """Fork for each request; returns what to run in the child, and None in the server when its client has gone."""
    with selectors.DefaultSelector() as selector:
        selector.register(requests, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is not requests:
                    _report_end(selector, key)
                    continue
                message, descriptors, _, _ = socket.recv_fds(requests, _MOST_BYTES, _N_STREAMS + 1)
                if not message:
                    return None
                *streams, status = descriptors
                pid = os.fork()
                if pid == 0:
                    _close_all(requests, selector)
                    os.close(status)
                    return _become(json.loads(message), streams)
                for stream in streams:
                    os.close(stream)
                os.write(status, b"%d\n" % pid)
                selector.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, status))


def _report_end(selector: selectors.BaseSelector, key: selectors.SelectorKey) -> None:
    pid, status = key.data
    _, code = os.waitpid(pid, 0)
    selector.unregister(key.fileobj)
    os.close(key.fd)
    with contextlib.suppress(BrokenPipeError):  # nobody waits
        os.write(status, b"%d\n" % os.waitstatus_to_exitcode(code))
    os.close(status)


def _close_all(requests: socket.socket, selector: selectors.BaseSelector) -> None:
    for key in list(selector.get_map().values()):
        if key.data is not None:
            os.close(key.fd)
            os.close(key.data[1])
    requests.close()


def _become(request: dict[str, object], streams: list[int]) -> list[str]:
    """Be a process as a new interpreter would be; returns the program's arguments."""
    program, environment, folder = request["program"], request["environment"], request["folder"]
    assert isinstance(program, list) and isinstance(environment, dict) and isinstance(folder, str)
    for number, (stream, name) in enumerate(zip(streams, ("stdin", "stdout", "stderr"), strict=True)):
        os.dup2(stream, number)
        os.close(stream)
        _open_stream(number, name)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    return program


def _open_stream(number: int, name: str) -> None:
    like = getattr(sys, name)
    stream = open(  # noqa: SIM115
        number, "w" if number else "r", encoding=like.encoding, errors=like.errors, closefd=False
    )
    if number:
        stream.reconfigure(line_buffering=number == 2 or stream.isatty())
    setattr(sys, name, stream)
    setattr(sys, f"__{name}__", stream)


def _run(program: list[str]) -> NoReturn:
    """Run `-m MODULE ARGUMENTS...` or `SCRIPT ARGUMENTS...`, and end as an interpreter does, but for its modules.

    Taking PyTorch's modules apart writes to pages that are shared with the server: 0.2 s of copying.
    """
    is_module = program[0] == "-m"
    sys.path[0] = str(Path.cwd() if is_module else Path(program[0]).parent)
    sys.argv = program[is_module:]
    code: object = None
    try:
        if is_module:
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        code = end.code
    except BaseException:  # noqa: BLE001  # as an interpreter does
        traceback.print_exc()
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads
    atexit._run_exitfuncs()
    if not isinstance(code, int | None):
        sys.stderr.write(f"{code}\n")
        code = 1
    try:
        sys.stdout.flush()
    except OSError:
        code = 120  # as an interpreter ends that cannot write
    os._exit(code or 0)


if __name__ == "__main__":
    for _name in PRELOADED:
        importlib.import_module(_name)
    assert not READ_AT_IMPORT & sys.modules.keys()
    gc.freeze()  # so that the collector of a program leaves the pages of these modules shared
    _program = _serve(socket.socket(fileno=int(sys.argv[1])))
    if _program is not None:
        _run(_program)
