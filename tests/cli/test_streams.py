"""What goes to stdout, what to stderr, and where escapes may stand."""

import json
import re
from collections.abc import Callable

import pytest

from cli.command_line import CommandLine
from cli.fake_gptfast import PIECES

TEXT = "".join(PIECES)
Fake = Callable[[str], CommandLine]


def test_a_pipe_receives_the_generated_text_byte_for_byte_and_a_newline(fake: Fake) -> None:
    outcome = fake("streams").run("generate", "Hello")
    assert outcome.returncode == 0
    assert outcome.stdout == f"{TEXT}\n".encode()


def test_stderr_holds_the_numbers_within_80_columns_and_no_escape(fake: Fake) -> None:
    stderr = fake("streams").run("generate", "Hello").stderr.decode()
    assert "\x1b" not in stderr
    assert max(len(line) for line in stderr.splitlines()) <= 80
    for number in ("812 tok/s", "1,520 tok/s", "TTFT 12.3 ms", "p50 1.23 ms", "p95 1.60 ms", "5.21 GB/s", "310 MB"):
        assert number in stderr


def test_quiet_leaves_the_text_alone(fake: Fake) -> None:
    outcome = fake("streams").run("generate", "Hello", "--quiet")
    assert outcome.stdout == f"{TEXT}\n".encode()
    assert outcome.stderr == b""


def test_json_is_one_document_with_the_contracts_keys(fake: Fake) -> None:
    outcome = fake("streams").run("generate", "Hello", "--json", "--num-samples", "2")
    document = json.loads(outcome.stdout)
    assert list(document) == ["schema", "model", "seed", "samples", "metrics"]
    assert document["schema"] == "gptfast.generate/1"
    assert [sample["text"] for sample in document["samples"]] == [TEXT, TEXT]
    assert {"id", "text", "token_ids", "prompt_tokens", "finish_reason"} == set(document["samples"][0])


@pytest.mark.parametrize("batch_size", ["1", "2", "3"])
def test_samples_arrive_whole_and_labelled_whatever_the_batch_size(fake: Fake, batch_size: str) -> None:
    outcome = fake("streams").run("generate", "Hello", "--num-samples", "3", "--batch-size", batch_size)
    assert outcome.stdout.decode() == "".join(f"--- sample {i} of 3 ---\n{TEXT}\n" for i in (1, 2, 3))


@pytest.mark.parametrize("columns", [80, 120])
def test_a_terminal_shows_prompt_text_and_status_and_is_left_as_it_was(fake: Fake, columns: int) -> None:
    delayed = fake("streams").with_environment(FAKE_DELAY="0.12")
    code, screen = delayed.run_in_terminal("generate", "Hello", columns=columns)
    assert code == 0
    assert "\x1b[1;23r" in screen and "tok/s" in screen
    assert screen.rindex("\x1b[r") > screen.rindex("\x1b[1;23r"), "the scrolling region must be given back"
    assert "\x1b[2mHello\x1b[0m" in screen
    assert TEXT.replace("\x1b", "\N{SYMBOL FOR ESCAPE}") in _without_status(screen)


@pytest.mark.parametrize("n_samples", [1, 2])
def test_reasoning_is_dimmed_on_a_terminal_and_the_answer_after_it_begins_a_line(fake: Fake, n_samples: int) -> None:
    _, screen = fake("thinks").run_in_terminal("generate", "Hello", "--num-samples", str(n_samples))
    dimmed = "\x1b[2m<think>wh\x1b[0m\x1b[2my</think>\x1b[0m\nso"
    assert _without_status(screen).count(dimmed) == n_samples


def test_reasoning_goes_to_a_pipe_as_it_is_and_stands_apart_in_json(fake: Fake) -> None:
    assert fake("thinks").run("generate", "Hello").stdout == b"<think>why</think>so\n"
    (sample,) = json.loads(fake("thinks").run("generate", "Hello", "--json").stdout)["samples"]
    assert (sample["reasoning"], sample["content"]) == ("why", "so")


def test_an_escape_from_the_model_never_reaches_a_terminal(fake: Fake) -> None:
    _, screen = fake("streams").run_in_terminal("generate", "Hello")
    assert "\x1b[31m" not in screen and "\N{SYMBOL FOR ESCAPE}[31m" in screen


@pytest.mark.parametrize("variables", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
@pytest.mark.parametrize("arguments", [("generate", "Hello"), ("--help",), ("generate", "--nope"), ("bench",)])
def test_a_terminal_without_escapes_gets_none(
    fake: Fake, variables: dict[str, str], arguments: tuple[str, ...]
) -> None:
    _, screen = fake("streams").with_environment(**variables).run_in_terminal(*arguments)
    assert screen.strip() and "\x1b" not in screen


@pytest.mark.parametrize("variable", ["FORCE_COLOR", "GITHUB_ACTIONS"])
def test_help_in_a_pipe_holds_no_escape(gptfast: CommandLine, variable: str) -> None:
    assert b"\x1b" not in gptfast.with_environment(**{variable: "1"}).run("generate", "--help").stdout


def test_a_locale_without_the_character_is_no_error(fake: Fake) -> None:
    outcome = fake("streams").with_environment(PYTHONIOENCODING="ascii").run("generate", "Hello")
    assert outcome.returncode == 0 and b"w?rm" in outcome.stdout


def _without_status(screen: str) -> str:
    """What was written outside of status updates, which stand between saving and restoring the cursor."""
    return re.sub(r"\x1b7.*?\x1b8", "", screen)
