"""Rows spread over replicas are answered as one process answers them, and those of one that dies are done again."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from chat_model import model_that_fails_at_q
from cli.command_line import CommandLine, environment_of
from distributed.orphans import end_within_seconds, is_running
from gptfast_cli.core.batch.replicas import Replicas, answered
from gptfast_cli.core.errors import ExitCode, GptFastError
from gptfast_cli.core.events import Note, Record

TINY = ("-m", "tiny", "--dtype", "float32", "--threads", "1", "--seed", "3")


@pytest.fixture
def gptfast(tmp_path: Path) -> CommandLine:
    return CommandLine((sys.executable, "-m", "gptfast_cli"), environment_of(tmp_path / "home"))


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    file = tmp_path / "rows.jsonl"
    lines = [{"prompt": f"Row {n}: The goat", "max_new_tokens": 4 + 3 * (n % 3)} for n in range(9)]
    file.write_text("".join(f"{json.dumps(line)}\n" for line in lines) + '{"prompt": 7}\n')
    return file


def test_two_replicas_answer_as_one_process_does(gptfast: CommandLine, rows: Path, tmp_path: Path) -> None:
    line = ("generate", "--prompts-file", str(rows), *TINY)
    alone = gptfast.run(*line)
    assert alone.returncode == ExitCode.FAILURE and len(alone.stdout.splitlines()) == 10, "one row is bad"
    spread = gptfast.run(*line, "--replicas", "2")
    assert (spread.returncode, spread.stdout) == (alone.returncode, alone.stdout)
    output = tmp_path / "answers.jsonl"
    output.write_bytes(b"".join(alone.stdout.splitlines(keepends=True)[:4]))
    assert gptfast.run(*line, "--replicas", "2", "--output", str(output)).returncode == alone.returncode
    assert output.read_bytes() == alone.stdout


def test_a_row_without_finite_logits_fails_alone_as_it_does_without_replicas(
    gptfast: CommandLine, tmp_path: Path
) -> None:
    model, rows = model_that_fails_at_q(tmp_path / "model"), tmp_path / "rows.jsonl"
    prompts = ["a b", "a q", "c", "q", "b c", "c a"]  # each replica has one that fails
    rows.write_text("".join(f"{json.dumps({'prompt': prompt})}\n" for prompt in [*prompts, "q"]))
    line = ("generate", "--prompts-file", str(rows), "-m", str(model), *TINY[2:])
    line = (*line, "--max-new-tokens", "6", "--ignore-eos")
    alone, spread = gptfast.run(*line), gptfast.run(*line, "--replicas", "2")
    assert (spread.returncode, spread.stdout) == (alone.returncode, alone.stdout)
    assert spread.returncode == ExitCode.FAILURE and b"is gone" not in spread.stderr
    reported = {record["line"]: record for record in map(json.loads, spread.stdout.splitlines())}
    assert [line for line, record in reported.items() if "error" in record] == [2, 4, 7]
    assert reported[4]["error"]["message"].startswith("The model's logits are NaN or infinite")
    assert [len(reported[line]["token_ids"]) for line in (1, 3, 5, 6)] == [6] * 4


def test_rows_of_a_replica_that_dies_are_done_again(gptfast: CommandLine, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f'{{"prompt": "Row {n}"}}\n' for n in range(40)))
    line = ("generate", "--prompts-file", str(rows), *TINY, "--backend", "reference", "--max-new-tokens", "24")
    line = (*line, "--ignore-eos", "--batch-size", "1", "--replicas", "2")
    with gptfast.start(*line) as process:
        victim = replica_at_work(process)
        os.kill(victim, signal.SIGKILL)
        stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    assert b"is gone" in stderr and b"rows again" in stderr
    assert [json.loads(text)["line"] for text in stdout.splitlines()] == list(range(1, 41))


def test_replicas_end_with_a_launcher_that_is_killed(gptfast: CommandLine, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f'{{"prompt": "Row {n}"}}\n' for n in range(400)))
    line = ("generate", "--prompts-file", str(rows), *TINY, "--backend", "reference", "--ignore-eos")
    with gptfast.start(*line, "--replicas", "2") as process:
        replica_at_work(process)
        replicas = children_of(process.pid)
        for replica in replicas:
            os.kill(replica, signal.SIGSTOP)  # so that none ends for a closed pipe
        process.kill()
        try:
            end_within_seconds(replicas)
        finally:
            for replica in filter(is_running, replicas):
                os.kill(replica, signal.SIGKILL)


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def replica_at_work(process: "subprocess.Popen[bytes]") -> int:
    """The process of a replica that has answered rows: its output has begun."""
    assert process.stdout is not None
    for _ in range(600):
        children = children_of(process.pid)
        if len(children) == 2 and all(io_written(child) > 500 for child in children):
            return children[1]
        time.sleep(0.05)
    raise AssertionError("no replica has answered anything")


def io_written(pid: int) -> int:
    fields = dict(line.split(": ") for line in Path(f"/proc/{pid}/io").read_text().splitlines())
    return int(fields["wchar"])


def test_a_replica_that_never_answers_ends_the_job_with_its_reason() -> None:
    command = (sys.executable, "-c", "import sys; print('no such luck', file=sys.stderr); sys.exit(3)")
    job = answered([1, 2, 3], Replicas(2, command), seed=0)
    with pytest.raises(GptFastError, match="answers nothing:\nno such luck") as caught:
        list(job)
    assert "--replicas" in caught.value.hint


def test_what_was_cut_off_is_not_taken_for_an_answer() -> None:
    program = (
        "import json, os, sys; part = json.load(open(os.environ['GPTFAST_REPLICA']))\n"
        "print(json.dumps({'line': part['lines'][0], 'seed': part['seed']}), flush=True)\n"
        "sys.stdout.write('{\"line\": 9')\n"
    )
    events = list(answered([4, 5, 6], Replicas(1, (sys.executable, "-c", program)), seed=7))
    assert [event.fields for event in events if isinstance(event, Record)] == [
        {"line": n, "seed": 7} for n in (4, 5, 6)
    ]
    assert sum(isinstance(event, Note) for event in events) == 2
