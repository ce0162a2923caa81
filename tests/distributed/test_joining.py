"""Ranks that a launcher of several machines has started, at a port where they cannot meet: an error, no traceback."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cli.command_line import CommandLine, environment_of
from gptfast_cli.core.errors import ExitCode

PROGRAM = """
import datetime, functools
from gptfast_cli.__main__ import main
from gptfast_cli.core.distributed import group
group.joined = functools.partial(group.joined, timeout=datetime.timedelta(seconds=1))
main()
"""
LINE = ("generate", "The goat", "-m", "tiny", "--dtype", "float32", "--threads", "1", "--max-new-tokens", "4")


@contextmanager
def silent_port() -> Iterator[int]:
    """A port of 127.0.0.1 that something listens at, which is no store and never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield int(listener.getsockname()[1])


def rank(number: int, port: int, home: Path) -> "subprocess.Popen[bytes]":
    """One of two that meet at a port, as torchrun would have started it; it waits for a second."""
    place = {"RANK": number, "WORLD_SIZE": 2, "LOCAL_RANK": number, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
    variables = {name: str(value) for name, value in place.items()}
    gptfast = CommandLine((sys.executable, "-c", PROGRAM), environment_of(home))
    own = gptfast.with_environment(**variables, MASTER_ADDR="127.0.0.1", TORCHELASTIC_RUN_ID="none")
    return own.start(*LINE)


def check_error(process: "subprocess.Popen[bytes]", number: int, port: int, reason: str) -> None:
    try:
        stdout, stderr = (written.decode() for written in process.communicate(timeout=60))
    finally:
        process.kill()
    assert (process.returncode, stdout) == (ExitCode.NETWORK, ""), stderr
    lines = stderr.splitlines()
    assert lines[0] == f"error: Rank {number} of 2 did not find the others by 127.0.0.1:{port}."
    assert reason in lines[1]
    assert all(line.startswith("hint: ") for line in lines[2:]) and len(lines) <= 5, stderr
    assert "torchrun --master-port" in stderr


def test_ranks_at_a_port_that_is_taken_end_with_one_error_each(tmp_path: Path) -> None:
    with silent_port() as port:
        first, second = (rank(number, port, tmp_path / str(number)) for number in (0, 1))
        check_error(first, 0, port, "EADDRINUSE")
        check_error(second, 1, port, "Not all ranks joined within 1 seconds.")


def test_a_rank_that_nobody_waits_for_ends_with_an_error(tmp_path: Path) -> None:
    with silent_port() as port:
        pass
    check_error(rank(1, port, tmp_path / "home"), 1, port, "Not all ranks joined within 1 seconds.")


def test_a_port_that_is_no_number_is_an_error(tmp_path: Path) -> None:
    place = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "none"}
    gptfast = CommandLine((sys.executable, "-m", "gptfast_cli"), environment_of(tmp_path / "home"))
    output = gptfast.with_environment(**place, MASTER_ADDR="127.0.0.1", MASTER_PORT="port").run(*LINE)
    assert output.returncode == ExitCode.NETWORK and b"Traceback" not in output.stderr
    assert output.stderr.decode().startswith("error: Rank 0 of 2 did not find the others by 127.0.0.1:port.")


def test_torchrun_itself_ends_with_the_reason_where_its_port_is_taken(tmp_path: Path) -> None:
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1")
    with silent_port() as port:
        launcher = CommandLine(torchrun, environment_of(tmp_path / "home"))
        output = launcher.run("--master-port", str(port), "-m", "gptfast_cli", *LINE)
    assert output.returncode != 0 and output.stdout == b""
    last = output.stderr.decode().splitlines()[-1]
    assert "EADDRINUSE" in last and str(port) in last and b"error: " not in output.stderr
