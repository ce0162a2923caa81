"""`gptfast generate --tp`: one rank speaks, all end together, and what goes wrong is reported once."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from cli.command_line import CommandLine, environment_of
from distributed.orphans import end_within_seconds, is_running
from gptfast_cli.core.distributed.launch import _outcome
from gptfast_cli.core.distributed.rank import FOLDER, Failure, LostRankError, failures_left, leave_failure, this_rank
from gptfast_cli.core.errors import ExitCode, GptFastError, UsageError

TINY = ("-m", "tiny", "--dtype", "float32", "--threads", "1", "--seed", "3")
LONG = ("--max-new-tokens", "400", "--ignore-eos")


@pytest.fixture
def gptfast(tmp_path: Path) -> CommandLine:
    return CommandLine((sys.executable, "-m", "gptfast_cli"), environment_of(tmp_path / "home"))


def test_two_ranks_with_a_draft_say_what_one_says_and_only_once(gptfast: CommandLine) -> None:
    line = (*TINY, "--temperature", "0", "--max-new-tokens", "40", "--json")
    alone = json.loads(gptfast.run("generate", "The goat", *line).stdout)
    drafting = ("--draft", "tiny-draft", "--speculate-k", "auto")
    outcome = gptfast.run("generate", "-", *line, "--tp", "2", *drafting, stdin=b"The goat\n")
    assert outcome.returncode == 0, outcome.stderr
    both = json.loads(outcome.stdout)
    assert both["samples"] == alone["samples"] and both["speculation"]["rounds"] > 0
    assert not both["speculation"]["replicated"]
    assert [rank["rank"] for rank in both["ranks"]] == [0, 1] and "ranks" not in alone
    assert all(0 < rank["collective_share"] < 1 and rank["peak_memory_bytes"] > 0 for rank in both["ranks"])
    assert outcome.stderr.count(b"Model: tiny") == 1


def test_rows_of_a_file_are_answered_once(gptfast: CommandLine, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f'{{"prompt": "{text}"}}\n' for text in ("The goat", "Once", "12 + 30 =")))
    line = ("generate", "--prompts-file", str(rows), *TINY, "--max-new-tokens", "8")
    alone = gptfast.run(*line).stdout
    output = tmp_path / "answers.jsonl"
    output.write_bytes(alone.splitlines(keepends=True)[0])  # by an earlier run, and not to be answered again
    outcome = gptfast.run(*line, "--tp", "2", "--output", str(output))
    assert outcome.returncode == 0, outcome.stderr
    assert output.read_bytes() == alone


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--tp", "0"], 2, "--tp"),
        (["--tp", "2", "--interactive"], 2, "--interactive and --tp exclude each other"),
        (["--tp", "2", "--prompts-file", "x", "--replicas", "2"], 2, "--replicas and --tp exclude each other"),
        (["--tp", "2", "--prompt-ids", "1,99999"], 2, "Token id 99999"),
    ],
)
def test_what_every_rank_finds_wrong_is_reported_once(
    gptfast: CommandLine, arguments: Sequence[str], code: int, says: str
) -> None:
    outcome = gptfast.run("generate", *TINY, *arguments)
    errors = [line for line in outcome.stderr.decode().splitlines() if line.startswith("error:")]
    assert outcome.returncode == code, outcome.stderr
    assert len(errors) == 1 and says in errors[0] and "Rank" not in errors[0]


def started(gptfast: CommandLine, *arguments: str) -> "subprocess.Popen[bytes]":
    """A long run, once both of its ranks generate."""
    process = gptfast.start("generate", "Once", *TINY, *LONG, "--tp", "2", *arguments)
    assert process.stdout is not None
    assert process.stdout.read(1), process.communicate()
    return process


def ranks_of(process: "subprocess.Popen[bytes]") -> list[int]:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(child) for child in children if b"gptfast_cli" in Path(f"/proc/{child}/cmdline").read_bytes()]


def ended(process: "subprocess.Popen[bytes]", ranks: Sequence[int]) -> tuple[int, str]:
    began = time.monotonic()
    _, stderr = process.communicate(timeout=30)
    assert time.monotonic() - began < 10
    assert not any(Path(f"/proc/{rank}").exists() for rank in ranks)
    return process.returncode, stderr.decode()


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_rank_that_is_killed_ends_all_with_one_error_that_names_it(gptfast: CommandLine, rank: int) -> None:
    process = started(gptfast, "--backend", "reference")
    ranks = ranks_of(process)
    assert len(ranks) == 2
    os.kill(ranks[rank], signal.SIGKILL)
    code, stderr = ended(process, ranks)
    assert code == ExitCode.FAILURE
    assert [line for line in stderr.splitlines() if line.startswith("error:")] == [
        f"error: Rank {rank} was killed (SIGKILL), and the others ended with it."
    ]


def listening(pids: Sequence[int]) -> set[str]:
    """The addresses, in the hexadecimal of /proc/net, on which processes listen."""
    names = [str(file.readlink()) for pid in pids for file in Path(f"/proc/{pid}/fd").iterdir() if file.exists()]
    sockets = {name[len("socket:[") : -1] for name in names if name.startswith("socket:[")}
    rows = [row.split() for table in ("tcp", "tcp6") for row in Path(f"/proc/net/{table}").read_text().splitlines()[1:]]
    return {row[1].split(":")[0] for row in rows if row[3] == "0A" and row[9] in sockets}


def test_ranks_listen_on_the_loopback_interface_alone_and_end_with_a_launcher_that_is_killed(
    gptfast: CommandLine,
) -> None:
    exposed = {"GLOO_SOCKET_IFNAME": "no such interface"}  # as of a job of many machines
    process = started(gptfast.with_environment(**exposed), "--backend", "reference")
    ranks = ranks_of(process)
    assert listening([process.pid, *ranks]) == {"0100007F"}  # 127.0.0.1
    for rank in ranks:
        os.kill(rank, signal.SIGSTOP)  # so that none ends because it has lost another
    try:
        process.kill()
        end_within_seconds(ranks)
    finally:
        for rank in filter(is_running, ranks):
            os.kill(rank, signal.SIGKILL)
        process.communicate()


@pytest.mark.parametrize(
    ("number", "code", "backend"), [(signal.SIGINT, 130, "cpu"), (signal.SIGTERM, 143, "reference")]
)
def test_a_signal_ends_all_ranks(gptfast: CommandLine, number: signal.Signals, code: int, backend: str) -> None:
    process = started(gptfast, "--backend", backend)
    ranks = ranks_of(process)
    process.send_signal(number)
    returned, stderr = ended(process, ranks)
    assert returned == code
    assert "error" not in stderr and "Traceback" not in stderr
    assert ("ended by interrupted" in stderr) == (number == signal.SIGINT)


FAILED = Failure("No memory.", "Try less.", 7, is_lost=False)
LOST = Failure("Another rank is gone.", "", 1, is_lost=True)


@pytest.mark.parametrize(
    ("left", "codes", "error"),
    [
        ({0: FAILED, 1: FAILED}, {0: 7, 1: 7}, (7, "No memory.")),
        ({0: LOST, 1: FAILED}, {0: 1, 1: 7}, (7, "Rank 1: No memory.")),
        ({0: LOST}, {0: 1, 1: -9}, (1, "Rank 1 was killed (SIGKILL)")),
        ({0: LOST}, {0: 1, 1: -11}, (1, "Rank 1 was killed (SIGSEGV)")),
        ({}, {0: 3}, (1, "Rank 0 ended with exit code 3.")),
        ({0: LOST}, {0: 1, 1: 1}, (1, "Rank 1 ended with exit code 1.\na line\nImportError: torch")),
    ],
)
def test_of_all_that_ranks_end_with_the_reason_is_reported(
    left: dict[int, Failure], codes: dict[int, int], error: tuple[int, str], tmp_path: Path
) -> None:
    (tmp_path / "1.log").write_text("a line\n\nImportError: torch\n")
    with pytest.raises(GptFastError) as caught:
        _outcome(left, codes, tmp_path)
    assert caught.value.exit_code == error[0] and error[1] in caught.value.message


def test_a_rank_leaves_its_failure_for_the_launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert this_rank({"RANK": "1", "WORLD_SIZE": "2"}) is None
    assert not leave_failure(UsageError("alone"))
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert not leave_failure(UsageError("under torchrun it speaks"))
    assert leave_failure(LostRankError("but not of what another has to say"))
    monkeypatch.setenv(FOLDER, str(tmp_path))
    assert leave_failure(UsageError("what", "why"))
    assert failures_left(tmp_path) == {1: Failure("what", "why", ExitCode.USAGE, is_lost=False)}


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"RANK": "one"}, "RANK='one'"),
        ({"WORLD_SIZE": ""}, "WORLD_SIZE=''"),
        ({"LOCAL_RANK": "9" * 5000}, "LOCAL_RANK='999"),
        ({"RANK": "2"}, "RANK=2 of WORLD_SIZE=2"),
        ({"LOCAL_WORLD_SIZE": "3"}, "of LOCAL_WORLD_SIZE=3"),
    ],
)
def test_a_launchers_variables_that_name_no_rank_are_a_usage_error(
    wrong: dict[str, str], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = {"TORCHELASTIC_RUN_ID": "x", "RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    for name, value in {**right, **wrong}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError) as caught:
        this_rank()
    assert says in caught.value.message
    assert not leave_failure(caught.value), "this process has to say it"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def launched_nodes(gptfast: CommandLine, arguments: Sequence[Sequence[str]]) -> list[tuple[int, str, str]]:
    """A launcher for each of several machines, all of them this one: exit code, stdout and stderr of each."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", str(len(arguments)), "--nproc-per-node", "1"]
    place = ["--master-addr", "127.0.0.1", "--master-port", str(free_port()), "-m", "gptfast_cli"]
    nodes = [
        subprocess.Popen(
            [*torchrun, "--node-rank", str(number), *place, *own],
            env=gptfast.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for number, own in enumerate(arguments)
    ]
    outcomes = [node.communicate(timeout=120) for node in nodes]
    return [
        (node.returncode, stdout.decode(), stderr.decode())
        for node, (stdout, stderr) in zip(nodes, outcomes, strict=True)
    ]


@pytest.mark.slow
def test_two_machines_run_the_same_command(gptfast: CommandLine) -> None:
    line = ("generate", "The goat", *TINY, "--max-new-tokens", "24")
    alone = gptfast.run(*line).stdout.decode()
    (first, text, _), (second, silence, _) = launched_nodes(gptfast, [line, line])
    assert (first, second) == (0, 0)
    assert (text, silence) == (alone, "")


@pytest.mark.slow
def test_ranks_started_with_other_arguments_are_refused(gptfast: CommandLine) -> None:
    line = ("generate", "The goat", *TINY, "--max-new-tokens")
    (first, text, stderr), (second, _, _) = launched_nodes(gptfast, [(*line, "24"), (*line, "25")])
    assert first != 0 and second != 0 and text == ""
    assert "Rank 1 was started with other arguments than rank 0" in stderr
