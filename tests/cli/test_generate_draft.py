"""`gptfast generate --draft` as a person meets it: the same text, its numbers, the contract's JSON, and refusals."""

import json
from collections.abc import Callable
from dataclasses import replace

import pytest

from cli.command_line import CommandLine

LINE = ("generate", "Once upon a time", "-m", "tiny", "--temperature", "0", "--max-new-tokens", "40")


@pytest.mark.parametrize("options", [(), ("--speculate-k", "3"), ("--speculate-k", "auto"), ("--speculate-k", "0")])
def test_the_document_has_the_text_of_the_target_and_what_rounds_came_to(
    gptfast: CommandLine, options: tuple[str, ...]
) -> None:
    plain = json.loads(gptfast.run(*LINE, "--json").stdout)
    drafted = json.loads(gptfast.run(*LINE, "--json", "--draft", "tiny-draft", *options).stdout)
    assert drafted["samples"] == plain["samples"]
    assert "speculation" not in plain
    output = drafted["speculation"]
    assert {"k", "rounds", "alpha", "tau", "accepted_histogram"} <= output.keys()
    assert output["k"] == {"3": 3, "auto": None, "0": 0}.get(options[-1] if options else "", 5)
    assert sum(output["accepted_histogram"]) == output["rounds"]
    assert set(output["shares"]) in ({"draft", "verify", "sample", "host"}, set())


def test_the_block_tells_tokens_a_round_and_where_the_time_went(fake: Callable[[str], CommandLine]) -> None:
    lines = fake("streams").run("generate", "Hello", "--draft", "tiny-draft").stderr.decode().splitlines()
    assert "draft    tiny-draft     k 5   3.25 tokens a round   alpha 0.912" in lines
    assert "accepted 40 rounds      0: 25%, 1: 0%, 2: 25%, 3: 0%, 4: 0%, 5: 50%" in lines
    assert "position conditional    75 67 - %   overall 75 50 0 %" in lines
    assert "load     120 ms         draft 40.0 ms   peak memory 310 MB" in lines
    assert "time     draft 30%, verify 50%, sample 15%, host 5%" in lines
    assert all(len(line) <= 80 for line in lines)


def test_a_long_histogram_fits_into_a_line() -> None:
    from gptfast_cli.core.bench.throughput import SpeculationReport
    from gptfast_cli.render.generation import speculation_rows

    report = SpeculationReport(
        "tiny-draft", None, 200, 0.9, 4.5, (*[10] * 16, 40), (), {"draft": 1.0}, 0, False, 0.0, 0.0
    )
    _, (_, rounds, counts), _ = speculation_rows(report)
    assert (rounds, counts) == ("200 rounds", "0: 5%, 1: 5%, 2: 5%, 3-4: 10%, 5-8: 20%, 9-16: 55%")
    whole = SpeculationReport("tiny-draft", 2, 10, 0.9, 2.0, (2, 3, 5), (), {"draft": 1.0}, 0, False, 0.0, 0.0)
    assert list(speculation_rows(whole))[1] == ("accepted", "10 rounds", "0: 20%, 1: 30%, 2: 50%")
    assert next(speculation_rows(replace(whole, replicated=True)))[1] == "tiny-draft, whole on each rank"


def test_options_reach_the_job(fake: Callable[[str], CommandLine]) -> None:
    run = fake("echoes-the-request").run
    assert json.loads(run("generate", "Hello", "--draft", "ngram").stdout)["drafting"] == {
        "draft": "ngram",
        "draft_length": 5,
        "has_own_draft_length": False,
    }
    adapted = json.loads(run("generate", "Hello", "--draft", "self:int8", "--speculate-k", "auto").stdout)["drafting"]
    assert adapted == {"draft": "self:int8", "draft_length": None, "has_own_draft_length": True}
    assert json.loads(run("generate", "Hello").stdout)["drafting"] is None


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            ("--draft", "tiny-draft", "--speculate-k", "-2"),
            "--speculate-k must be a whole number of at least 0, or auto",
        ),
        (("--draft", "self:plain"), "There are self:int4, self:int8"),
        (("--speculate-k", "3"), "--speculate-k requires --draft"),
    ],
)
def test_what_cannot_be_meant_is_a_usage_error(gptfast: CommandLine, options: tuple[str, ...], says: str) -> None:
    outcome = gptfast.run(*LINE, *options)
    assert outcome.returncode == 2
    assert says in outcome.stderr.decode()
