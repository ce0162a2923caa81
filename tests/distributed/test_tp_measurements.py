"""`bench`, `eval` and `speculate` on several ranks: what one measures, each with its part of the model."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from cli.command_line import CommandLine, environment_of
from distributed.ranks import on_ranks
from gptfast_cli.core.distributed.group import TorchProcessGroup
from gptfast_cli.core.evals.tasks.evaluate import open_response_cache
from gptfast_cli.core.evals.tasks.requests import RollingRequest

TINY = ("-m", "tiny", "--dtype", "float32", "--threads", "1")


@pytest.fixture
def gptfast(tmp_path: Path) -> CommandLine:
    return CommandLine((sys.executable, "-m", "gptfast_cli"), environment_of(tmp_path / "home"))


def document(gptfast: CommandLine, *line: str) -> dict[str, Any]:
    outcome = gptfast.run(*line, *TINY, "--json")
    assert outcome.returncode == 0, outcome.stderr.decode()
    assert outcome.stderr.count(b"Model: tiny") == 1
    found: dict[str, Any] = json.loads(outcome.stdout)
    return found


def test_bench_holds_numbers_of_ranks_against_one_another(gptfast: CommandLine) -> None:
    line = ("bench", "--tp", "2,1", "--prompt-len", "8", "--gen-len", "4", "--depth", "0,6000", "--reps", "1")
    bench = document(gptfast, *line)
    rows = [row for row in bench["rows"] if row["error"] is None]
    assert [(row["test"], row["tp"], len(row["ranks"])) for row in rows] == [
        ("pp8", 2, 2),
        ("pp8", 1, 0),
        ("tg4", 2, 2),
        ("tg4", 1, 0),
    ]
    assert all(0 < rank["collective_share"] < 1 for row in rows for rank in row["ranks"])
    assert sum("needs" in (row["error"] or "") for row in bench["rows"]) == 4  # of as many tokens as no rank holds
    assert [(gain["test"], gain["base"], gain["tp"]) for gain in bench["scaling"]] == [("pp8", 1, 2), ("tg4", 1, 2)]
    assert bench["environment"]["ranks"] == 2


THREE_HEADS = "layers=2,dim=96,heads=3,ffn=96,vocab=99"
NOT_EVEN = "layers=2,dim=128,heads=2,ffn=68,vocab=99"  # half of 68 is no whole number of groups of 32


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (("--arch", THREE_HEADS, "--tp", "1,2"), "--tp 2: 3 query heads are not divisible by 2."),
        (
            ("--arch", NOT_EVEN, "--mode", "int4", "--threads", "1", "--tp", "1,2"),
            "A matrix in int4 cannot be cut at columns 0 and 34: its smallest groups are of 32.",
        ),
        ((*TINY, "--tp", "0"), "--tp must be whole numbers of at least 1, such as 1,2,4 or 1..8, not '0'."),
    ],
)
def test_bench_tells_what_no_ranks_can_do_before_it_loads(
    gptfast: CommandLine, line: tuple[str, ...], says: str
) -> None:
    outcome = gptfast.run("bench", *line)
    errors = [line for line in outcome.stderr.decode().splitlines() if line.startswith("error:")]
    assert outcome.returncode == 2 and errors == [f"error: {says}"]
    assert b"Model:" not in outcome.stderr


def test_eval_comes_to_the_same_and_only_one_rank_writes(gptfast: CommandLine, tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("The goat had a bell, and the bell rang. " * 20)
    line = ("eval", "--tasks", "bundled-choice,bundled-sums", "--limit", "2", "--against", "tiny-draft")
    line = (*line, "--text", str(text), "--protocol", "gptq-64")
    alone = document(gptfast, *line)
    both = document(gptfast, *line, "--tp", "2", "--output-path", str(tmp_path / "records"))
    assert len(list(tmp_path.glob("records/*/results_*.json"))) == 1
    assert both["results"] == alone["results"]
    assert both["perplexity"]["value"] == pytest.approx(alone["perplexity"]["value"], rel=1e-5)
    assert both["divergence"]["kld_mean"] == pytest.approx(alone["divergence"]["kld_mean"], rel=1e-3)


def found_by(group: TorchProcessGroup, path: Path) -> float | str | object:
    with open_response_cache(path, group) as memory:
        if group.rank == 0:
            memory.put(RollingRequest("new"), -3.0)
        return memory.get(RollingRequest("kept")), memory.n_found


def test_all_ranks_know_what_an_earlier_run_was_answered_and_the_first_has_the_file(tmp_path: Path) -> None:
    with open_response_cache(tmp_path / "answers") as memory:
        memory.put(RollingRequest("kept"), -2.0)
    assert on_ranks(2, found_by, tmp_path / "answers") == [(-2.0, 1), (-2.0, 1)]
    with open_response_cache(tmp_path / "answers") as memory:
        assert memory.n_found == 2


def test_speculate_judges_ranks_as_one(gptfast: CommandLine, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    line = ("speculate", "--tp", "2", "--draft", "tiny-draft", "--k", "2", "--batch-size", "1", "--temperature", "0")
    line = (*line, "--limit", "2", "--max-new-tokens", "6", "--reps", "1", "--report", str(report))
    judged = document(gptfast, *line)
    alone = document(gptfast, *line[:1], *line[3:-2])
    assert judged["environment"]["ranks"] == 2
    drafts = [{draft["draft"]: draft["alpha"] for draft in each["drafts"]} for each in (judged, alone)]
    assert drafts[0] == drafts[1]
    assert judged["proofs"] and report.is_file()
