"""`gptfast eval` as a person and as a program meet it: names in two spellings, tables, documents, and an early end."""

import json
import signal
import time
from pathlib import Path

import pytest

from cli.command_line import ROOT, CommandLine
from gptfast_cli.commands.eval import joined

DRAFT = ("eval", "tiny-draft", "--threads", "1", "--dtype", "float32")


@pytest.fixture
def without_harness(gptfast: CommandLine, tmp_path: Path) -> CommandLine:
    """The program where lm-evaluation-harness is not installed, and where opening a connection is an error."""
    folder = tmp_path / "modules"
    (folder / "lm_eval").mkdir(parents=True)
    (folder / "lm_eval" / "__init__.py").write_text("raise ModuleNotFoundError(name='lm_eval')")
    (folder / "sitecustomize.py").write_text(
        "import socket\ndef refuse(*_): raise AssertionError('network')\nsocket.socket.connect = refuse\n"
    )
    return gptfast.with_environment(PYTHONPATH=f"{folder}:{ROOT}")


def test_alone_it_scores_the_bundled_tasks_without_network_or_harness(without_harness: CommandLine) -> None:
    outcome = without_harness.run(*DRAFT)
    assert outcome.returncode == 0, outcome.stderr.decode()
    lines = outcome.stdout.decode().splitlines()
    assert [line.split()[0] for line in lines if line.startswith("bundled")] == [
        "bundled-choice", "bundled-cloze", "bundled-sums"]  # fmt: skip
    assert all(len(line) <= 80 for line in lines)
    assert "<s> stands before every text" in outcome.stdout.decode() and "seed 1234" in outcome.stdout.decode()


def test_the_document_and_the_files_have_the_keys_that_others_build_on(gptfast: CommandLine, tmp_path: Path) -> None:
    out = tmp_path / "out"
    asked = ("--tasks", "bundled-sums", "bundled-cloze", "--limit", "0.1")
    outcome = gptfast.run(*DRAFT, *asked, "--json", "--output-path", str(out))
    document = json.loads(outcome.stdout)
    assert document["schema"] == "gptfast.eval/1" and document["model"] == "tiny-draft"
    assert document["results"].keys() == {"bundled-sums", "bundled-cloze"}
    assert document["results"]["bundled-cloze"].keys() == {"acc", "acc_stderr", "nats", "nats_stderr"}
    assert (document["dtype"], document["scheme"], document["interrupted"]) == ("float32", "plain", False)
    each = document["tasks"]["each"]["bundled-sums"]
    assert each == {"n": 20, "n_all": 200, "n_shots": 0, "whole": True, "group": False}
    assert document["tasks"]["seed"] == 1234

    (samples,) = (out / "tiny-draft").glob("samples_bundled-sums_*.jsonl")
    (results,) = (out / "tiny-draft").glob("results_*.json")
    assert samples.stem.removeprefix("samples_bundled-sums_") == results.stem.removeprefix("results_")
    rows = [json.loads(line) for line in samples.read_text().splitlines()]
    assert len(rows) == 20 and {"doc_id", "doc", "target", "arguments", "resps", "exact_match"} <= rows[0].keys()
    values = json.loads(results.read_text())["results"]["bundled-sums"]
    assert values["exact_match,none"] == sum(row["exact_match"] for row in rows) / 20
    assert document["results"]["bundled-sums"]["exact_match"] == values["exact_match,none"]


def test_ctrl_c_shows_what_is_whole_as_partial_and_a_kill_loses_no_answer(gptfast: CommandLine, home: Path) -> None:
    arguments = ("eval", "tiny", "--threads", "1", "--dtype", "float32", "--tasks", "bundled-choice", "--limit", "99")
    for ending in (signal.SIGKILL, signal.SIGINT):
        with gptfast.start(*arguments) as process:
            n_before = _n_answers(home)
            while _n_answers(home) < n_before + 60:
                assert process.poll() is None, process.stderr and process.stderr.read()
                time.sleep(0.01)
            process.send_signal(ending)
            stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert b"PARTIAL" in stdout and b"bundled-choice" in stdout
    assert b"answers were cached by an earlier run" in stderr
    outcome = gptfast.run(*arguments)
    assert outcome.returncode == 0 and b"PARTIAL" not in outcome.stdout
    assert b"answers from an earlier run" in outcome.stdout and _n_answers(home) == 0


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["tiny", "--tasks", "a", "b", "--limit", "3"], ["tiny", "--tasks", "a,b", "--limit", "3"]),
        (["--tasks", "a,b", "c"], ["--tasks", "a,b,c"]),
        (["--tasks", "-m", "tiny"], ["--tasks", "-m", "tiny"]),
        (["tiny", "--json"], ["tiny", "--json"]),
    ],
)
def test_all_words_behind_tasks_are_tasks(arguments: list[str], expected: list[str]) -> None:
    assert joined(arguments) == expected


def _n_answers(home: Path) -> int:
    files = (home / ".cache" / "gptfast" / "answers").glob("*.jsonl")
    return sum(len(file.read_text().splitlines()) for file in files)
