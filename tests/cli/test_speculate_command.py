"""`gptfast speculate` as a person meets it: the verdict first, the contract's JSON, reports, and refusals."""

import html
import json
import re
from pathlib import Path

import pytest

from cli.command_line import CommandLine

QUICK = (
    *("speculate", "-m", "tiny", "--k", "1..2,4", "--batch-size", "1,2", "--temperature", "0"),
    *("--limit", "3", "--max-new-tokens", "16", "--reps", "1", "--threads", "1"),
)
ONE_CELL = (*QUICK, "--k", "2", "--batch-size", "1")


def test_the_verdict_stands_first_and_all_else_goes_to_stderr(gptfast: CommandLine) -> None:
    outcome = gptfast.run(*ONE_CELL, "--batch-size", "16", "--certify")
    assert outcome.returncode == 0, outcome.stderr.decode()
    lines = outcome.stdout.decode().splitlines()
    assert lines[0].startswith(("Use ", "No draft", "No clear gain", "Noisy machine: "))
    assert "Model: tiny" in outcome.stderr.decode() and "Model: tiny" not in outcome.stdout.decode()
    assert all(len(line) <= 80 for line in lines)
    assert b"\x1b" not in outcome.stdout + outcome.stderr


def test_the_document_is_that_of_the_contract(gptfast: CommandLine) -> None:
    output = json.loads(gptfast.run(*QUICK, "--json", "--quiet").stdout)
    assert output["schema"] == "gptfast.speculate/1" and isinstance(output["verdict"], str)
    assert [each["draft"] for each in output["drafts"]] == ["tiny-draft", "ngram"]
    draft = output["drafts"][0]
    assert draft["temperature"] == 0 and 0 <= draft["alpha"] <= 1
    assert sorted(draft["tau"]) == ["1", "2", "4"]
    assert {(cell["k"], cell["batch_size"]) for cell in draft["grid"]} == {(k, b) for k in (1, 2, 4) for b in (1, 2)}
    assert all(cell["predicted"] > 0 for cell in draft["grid"])
    assert any(cell["measured"] for cell in draft["grid"]) and any(cell["measured"] is None for cell in draft["grid"])


@pytest.mark.parametrize(("name", "begins"), [("r.html", "<!doctype html>"), ("r.md", "**"), ("r.json", "{")])
def test_a_report_is_written_beside(gptfast: CommandLine, tmp_path: Path, name: str, begins: str) -> None:
    outcome = gptfast.run(*ONE_CELL, "--report", str(tmp_path / name), "--json")
    verdict = json.loads(outcome.stdout)["verdict"]
    written = (tmp_path / name).read_text(encoding="utf-8")
    assert written.lower().startswith(begins)
    words = html.unescape(re.sub("<[^>]+>", "", written)) if name == "r.html" else written
    assert all(line in words for line in verdict.split("\n")) and "tiny-draft" in words


def test_advice_is_followed_by_generate(gptfast: CommandLine) -> None:
    output = gptfast.run(*ONE_CELL, "--save-advice", "--force", "--json")
    (pick,) = json.loads(output.stdout)["picks"]
    assert b"Saved the advice" in output.stderr
    line = ("generate", "Once upon a time", "-m", "tiny", "--temperature", "0", "--draft", "auto", "--json")
    generated = json.loads(gptfast.run(*line).stdout)
    if pick["draft"] is None:
        assert "speculation" not in generated
    else:
        assert (generated["speculation"]["draft"], generated["speculation"]["k"]) == (pick["draft"], pick["k"])


def test_a_draft_alone_is_a_benchmark_of_it(gptfast: CommandLine) -> None:
    shape = "layers=1,dim=64,heads=2,ffn=160,vocab=300"
    outcome = gptfast.run(
        "speculate", "--draft-only", "--draft", f"{shape}:int8", "--batch-size", "1,2", "--reps", "1", "--json"
    )
    output = json.loads(outcome.stdout)
    assert (output["model"], output["scheme"]) == (shape, "int8")
    assert [(row["test"], row["batch_size"]) for row in output["rows"]] == [("tg128", 1), ("tg128", 2)]
    assert all(row["tok_s"]["median"] > 0 for row in output["rows"])


def test_ctrl_c_tells_what_is_known(gptfast: CommandLine) -> None:
    code, stdout = gptfast.interrupted_at(b"measure costs", *QUICK, "--json", "--reps", "500")
    assert code == 130
    output = json.loads(stdout)
    assert output["interrupted"] and output["drafts"]


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (("--k", "3..1"), 2, "--k must be whole numbers of at least 1, such as"),
        (("--k", "0"), 2, "--k must be whole numbers of at least 1"),
        (("--temperature", "warm"), 2, "--temperature must be numbers of at least 0"),
        (("--report", "out.pdf"), 2, "--report writes .html, .md, .json"),
        (("--report", "/no/such/folder/out.html"), 2, "--report cannot write"),
        (("--draft", "auto"), 2, "only for generate"),
        (("--draft-only",), 2, "--draft-only requires exactly one --draft"),
        (("--draft", "no-such-model"), 3, "no-such-model"),
        (("--prompts", "/no/such/file"), 3, "There is no file of prompts"),
        (("--draft", "layers=1,dim=64,heads=2,ffn=160,vocab=300"), 2, "--assume-alpha"),
    ],
)
def test_what_cannot_be_meant_is_refused(gptfast: CommandLine, options: tuple[str, ...], code: int, says: str) -> None:
    outcome = gptfast.run("speculate", "-m", "tiny", *options)
    assert outcome.returncode == code
    assert says in outcome.stderr.decode() and len(outcome.stderr.decode().splitlines()) <= 6
