"""One prompt, a file of prompts, a talk: each takes the options that it can use, and refuses the others by name."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.command_line import CommandLine
from cli.typing_in_terminal import CTRL_D, typing_into


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--interactive", "--json"], "--json and --interactive exclude each other"),
        (["--interactive", "--prompt-cache", "x"], "--prompt-cache and --interactive exclude each other"),
        (["--interactive", "--prompts-file", "x"], "--prompts-file and --interactive exclude each other"),
        (["Hello", "--prompts-file", "x"], "PROMPT and --prompts-file exclude each other"),
        (["--prompts-file", "x", "--show-prompt"], "--show-prompt and --prompts-file exclude each other"),
        (["--prompts-file", "x", "--output", "y", "--json"], "--json and --output exclude each other"),
        (["Hello", "--output", "x"], "--output requires --prompts-file"),
        (["Hello", "--unordered"], "--unordered requires --prompts-file"),
        (["Hello", "--logprobs", "2"], "--logprobs requires --json"),
    ],
)
def test_an_option_that_would_not_be_listened_to_is_refused(
    gptfast: CommandLine, arguments: list[str], says: str
) -> None:
    outcome = gptfast.run("generate", *arguments)
    assert outcome.returncode == 2
    assert says in outcome.stderr.decode()
    assert outcome.stdout == b""


@pytest.mark.parametrize(
    ("variable", "says"),
    [
        ("effort=low", "--template-var effort: 'low' is not JSON"),
        ("enable_thinking=False", "'False' is not JSON"),
        ("effort", "--template-var takes KEY=JSON, not 'effort'"),
        ("=1", "takes KEY=JSON"),
        ("messages=[]", "messages: is no variable"),
    ],
)
def test_a_variable_of_the_chat_template_that_cannot_be_read_is_refused(
    gptfast: CommandLine, variable: str, says: str
) -> None:
    outcome = gptfast.run("generate", "Hello", "--template-var", variable)
    assert (outcome.returncode, outcome.stdout) == (2, b"")
    assert says in outcome.stderr.decode()


def test_the_options_of_one_prompt_reach_its_job(fake: Callable[[str], CommandLine]) -> None:
    options = [
        "--no-chat",
        "--system",
        "Be brief.",
        "--chat-template",
        "rag",
        "--no-think",
        "--template-var",
        'effort="low"',
        "--show-prompt",
        "--prompt-cache",
        "c.st",
        "--kv-dtype",
        "int8",
    ]
    outcome = fake("echoes-the-request").run("generate", "Hello", *options, "--compile", "--compile-prefill")
    request = json.loads(outcome.stdout)
    assert request["chat"] == {
        "chat": False,
        "system": "Be brief.",
        "template": "rag",
        "variables": {"enable_thinking": False, "effort": "low"},
    }
    assert request["compiling"] == {"decode": True, "prefill": True}
    assert request["runtime"]["kv_dtype"] == "int8"
    assert (request["show_prompt"], request["prompt_cache"]) == (True, "c.st")


def test_a_profile_is_written_of_one_prompt(gptfast: CommandLine, tmp_path: Path) -> None:
    trace = tmp_path / "trace.json"
    line = ("generate", "Hello", "-m", "tiny", "--max-new-tokens", "3", "--profile", str(trace))
    outcome = gptfast.run(*line, "--backend", "reference")
    assert outcome.returncode == 0
    assert "ui.perfetto.dev" in outcome.stderr.decode()
    names = {event["name"] for event in json.loads(trace.read_text())["traceEvents"]}
    assert {"load", "prefill", "decode", "sample", "attend"} <= names


def test_a_talk_with_the_bundled_model(gptfast: CommandLine) -> None:
    arguments = ("generate", "--interactive", "-m", "tiny", "--seed", "3", "--max-new-tokens", "8")
    with typing_into(CommandLine((*gptfast.program, *arguments), gptfast.environment)) as person:
        assert "tiny is used without a chat template" in person.see("> ")
        person.enter("Once upon a time")
        first = person.see("context 13 of")
        assert "8 tokens" in first
        person.see("> ")
        person.enter("Then")
        person.see("8 tokens")
        person.see("> ")
        person.type(CTRL_D)
        assert person.ends() == 0


@pytest.mark.parametrize(("mode", "n_tokens"), [((), 200), (("--interactive",), 241)])
def test_a_text_has_200_new_tokens_at_most_and_an_answer_of_a_chat_the_context(
    gptfast: CommandLine, mode: tuple[str, ...], n_tokens: int
) -> None:
    line = ("generate", *mode, "-m", "tiny", "--max-context", "246", "--ignore-eos", "--seed", "3", "Once upon a time")
    stderr = gptfast.run(*line).stderr.decode()
    assert f"5 + {n_tokens} " in stderr or f"{n_tokens} tokens" in stderr


def test_a_talk_from_a_pipe(gptfast: CommandLine) -> None:
    arguments = ("generate", "--interactive", "-m", "tiny", "--max-new-tokens", "5", "--quiet")
    outcome = gptfast.run(*arguments, stdin=b"Once upon a time\nThen\n")
    assert outcome.returncode == 0
    assert len(outcome.stdout.decode().splitlines()) >= 2
    assert outcome.stderr == b""
