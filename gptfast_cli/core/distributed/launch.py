"""Launcher of the ranks on this machine.

Each rank runs the same command line in its own process and session. Rendezvous is a file in a folder of mode 0700, and
collectives use the loopback interface: nothing listens on the network. Only rank 0 prints; a failed job ends with one
error that names the failing rank.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from gptfast_cli.core.distributed.rank import FOLDER, PARENT, Failure, as_error, failures_left
from gptfast_cli.core.errors import ExitCode, GptFastError

_SECONDS_BETWEEN_LOOKS = 0.05
_SECONDS_TO_FAIL = 1.0  # grace period for the other ranks to fail by themselves
_SECONDS_TO_STOP = 5.0  # from SIGTERM to SIGKILL
_SHOWN_LINES = 3
_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]

_Ranks = list["subprocess.Popen[bytes]"]


def launch(n_ranks: int, arguments: Sequence[str]) -> ExitCode:
    """Run the program with these arguments on `n_ranks` ranks, until all have ended.

    Returns the exit code for a received signal, else 0. Raises GptFastError if a rank failed.
    """
    command = (sys.executable, "-m", "gptfast_cli", *arguments)
    with tempfile.TemporaryDirectory(prefix="gptfast-ranks-") as name, _recorded_signals() as received:
        folder = Path(name)  # mode 0700
        ranks: _Ranks = []
        try:
            for number in range(n_ranks):
                ranks.append(_started(command, number, n_ranks, folder))
            _wait(ranks, received)
        finally:
            _stop(ranks, received[0] if received else signal.SIGTERM)
        if received:
            return ExitCode.INTERRUPTED if received[0] == signal.SIGINT else ExitCode.TERMINATED
        codes = {number: rank.returncode for number, rank in enumerate(ranks) if rank.returncode != 0}
        return _outcome(failures_left(folder), codes, folder) if codes else ExitCode.OK


@contextlib.contextmanager
def _recorded_signals() -> Iterator[list[int]]:
    """Record termination signals instead of obeying them for the block; ignored ones stay ignored."""
    received: list[int] = []
    former = {number: signal.getsignal(number) for number in _SIGNALS}
    for number, handler in former.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, lambda number, _frame: received.append(number))
    try:
        yield received
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _started(command: Sequence[str], number: int, n_ranks: int, folder: Path) -> "subprocess.Popen[bytes]":
    place = {"RANK": number, "WORLD_SIZE": n_ranks, "LOCAL_RANK": number, "LOCAL_WORLD_SIZE": n_ranks}
    environment = {**os.environ, **{name: str(value) for name, value in place.items()}, **_loopback()}
    with contextlib.ExitStack() as closing:
        log = None if number == 0 else closing.enter_context(_log_file(folder, number).open("wb"))
        return subprocess.Popen(  # noqa: S603  # our own command line
            command,
            env={**environment, FOLDER: str(folder), PARENT: str(os.getpid())},
            stdin=None if number == 0 else subprocess.DEVNULL,
            stdout=None if number == 0 else subprocess.DEVNULL,
            stderr=log,
            start_new_session=True,  # the terminal's Ctrl-C reaches the launcher only, which forwards it once
        )


def _loopback() -> Mapping[str, str]:
    """Environment that binds gloo and NCCL to the loopback interface."""
    name = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), None)
    return {} if name is None else {"GLOO_SOCKET_IFNAME": name, "NCCL_SOCKET_IFNAME": name}


def _log_file(folder: Path, number: int) -> Path:
    """The stderr of a rank other than 0."""
    return folder / f"{number}.log"


def _wait(ranks: _Ranks, received: Sequence[int]) -> None:
    """Wait until all ranks have ended, a signal is received, or a rank failed and the grace period is over."""
    deadline = None
    while not received and any(rank.poll() is None for rank in ranks):
        if deadline is None and any(rank.returncode for rank in ranks):
            deadline = time.monotonic() + _SECONDS_TO_FAIL
        if deadline is not None and time.monotonic() > deadline:
            return
        time.sleep(_SECONDS_BETWEEN_LOOKS)  # a signal does not interrupt the sleep


def _stop(ranks: _Ranks, number: int) -> None:
    """Send a signal to running ranks, and kill those that do not end in time."""
    for rank in ranks:
        if rank.poll() is None:
            rank.send_signal(number)
    deadline = time.monotonic() + _SECONDS_TO_STOP
    for rank in ranks:
        try:
            rank.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            rank.kill()
            rank.wait()


def _outcome(left: Mapping[int, Failure], codes: Mapping[int, int], folder: Path) -> ExitCode:
    """Raise the error of the rank that failed first; return the exit code of an interrupted run."""
    own = {rank: failure for rank, failure in left.items() if not failure.is_lost}
    killed = {rank: -code for rank, code in codes.items() if code < 0 and -code != signal.SIGTERM}
    if own:
        rank, first = next(iter(own.items()))
        is_of_all = len({(each.message, each.hint) for each in own.values()}) == 1 and len(own) > 1
        raise as_error(first.message if is_of_all else f"Rank {rank}: {first.message}", first.hint, first.exit_code)
    if killed:
        rank, number = next(iter(killed.items()))
        raise GptFastError(
            f"Rank {rank} was killed ({signal.Signals(number).name}), and the others ended with it.",
            "If the machine ran out of memory: take fewer ranks, or a model that is smaller or quantized.",
        )
    known = [code for code in codes.values() if code in (ExitCode.INTERRUPTED, ExitCode.TERMINATED)]
    if known:
        return ExitCode(known[0])
    rank, code = next((each for each in codes.items() if each[0] not in left), next(iter(codes.items())))
    raise GptFastError(f"Rank {rank} ended with exit code {code}.{_last_words(_log_file(folder, rank))}")


def _last_words(log: Path) -> str:
    """The last lines of a log, each preceded by a newline."""
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n") if log.exists() else []
    return "".join(f"\n{line}" for line in [line for line in lines if line.strip()][-_SHOWN_LINES:])
