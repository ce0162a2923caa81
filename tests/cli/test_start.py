"""Help and version: everything is listed, and nothing slow is loaded."""

import json
import platform
import shlex
import time
from importlib import metadata

import pytest
import typer

from cli.command_line import CommandLine
from gptfast_cli import __version__
from gptfast_cli.app import command_tree
from gptfast_cli.core.backends import BACKENDS
from gptfast_cli.core.versions import find_commit
from gptfast_cli.render.numbers import program_version

COMMANDS = ["download", "convert", "quantize", "generate", "speculate", "eval", "bench"]
QUICK = [["--help"], ["--version"], ["generate", "--help"], ["quantize", "--help"], ["bench", "--help"]]
SLOW_MODULES = {"torch", "numpy", "transformers", "huggingface_hub", "safetensors", "sentencepiece", "tokenizers"}


def test_help_lists_every_command_in_the_order_of_the_contract(gptfast: CommandLine) -> None:
    rows = gptfast.run("--help").stdout.decode().partition("Commands:")[2].partition("Examples:")[0].splitlines()
    assert [row.split()[0] for row in rows if row.startswith("  ") and row[2] != " "] == COMMANDS


@pytest.mark.parametrize("arguments", [["--help"], ["-h"]], ids=" ".join)
def test_help_in_a_pipe_cuts_no_description(gptfast: CommandLine, arguments: list[str]) -> None:
    text = " ".join(gptfast.run(*arguments).stdout.decode().split())
    for command in typer.main.get_group(command_tree(plain=True)).commands.values():
        assert " ".join(str(command.help).partition("\n\n")[0].split()) in text
    assert "..." not in text.replace("[ARGS]...", "")


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_in_a_pipe_keeps_the_groups_of_options(gptfast: CommandLine, flag: str) -> None:
    text = gptfast.run("generate", flag).stdout.decode()
    headings = [line.rstrip(":") for line in text.splitlines() if line and line[0] != " " and line.endswith(":")]
    assert headings[:4] == ["Arguments", "Options", "Prompt", "Chat"]
    assert {"Sampling", "Speed", "Machine", "Output"} < set(headings)
    assert text.index("Sampling:") < text.index("--temperature") < text.index("Speed:")


@pytest.mark.parametrize("name", COMMANDS)
def test_help_ends_in_examples_that_the_command_can_read(name: str) -> None:
    group = typer.main.get_group(command_tree(plain=True))
    command = group.commands[name]
    heading, *examples = (command.epilog or "").split("\n\n")
    assert heading == "Examples:" and len(examples) in (2, 3)
    for example in examples:
        program, called, *words = shlex.split(example)
        assert (program, called) == ("gptfast", name) and len(example) <= 78
        command.make_context(name, words)  # which raises where an option or a value is wrong


@pytest.mark.parametrize("columns", [80, 120])
def test_each_example_has_a_line_of_its_own(gptfast: CommandLine, columns: int) -> None:
    texts = (gptfast.run("bench", "-h").stdout.decode(), gptfast.run_in_terminal("bench", "-h", columns=columns)[1])
    for text in texts:
        lines = [line.strip() for line in text.partition("Examples:")[2].splitlines() if line.strip()]
        assert lines[0] == "gptfast bench tiny --batch-size 1,2,4,8" and len(lines) == 3


def test_help_on_a_terminal_shows_no_type_of_a_flag(gptfast: CommandLine) -> None:
    _, screen = gptfast.run_in_terminal("generate", "-h")
    assert "Sampling" in screen and "bool" not in screen


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["generate", "--help"], ["convert", "--help"], ["quantize", "--help"], ["bench", "--help"]],
)
def test_help_fits_the_terminal(gptfast: CommandLine, arguments: list[str], columns: int) -> None:
    code, screen = gptfast.with_environment(NO_COLOR="1").run_in_terminal(*arguments, columns=columns)
    assert code == 0 and max(len(line) for line in screen.splitlines()) <= columns


def test_the_bare_program_shows_its_help(gptfast: CommandLine) -> None:
    outcome = gptfast.run()
    assert outcome.returncode == 0 and b"Commands:" in outcome.stdout


def test_version_prints_commit_torch_and_every_backend(gptfast: CommandLine) -> None:
    first, second, *backends = gptfast.run("--version").stdout.decode().splitlines()
    assert first == program_version(__version__, find_commit())
    assert second == f"torch {metadata.version('torch')}, Python {platform.python_version()}"
    assert [line.partition(":")[0] for line in backends] == [f"backend {name}" for name in BACKENDS]


def test_version_is_a_json_document_too(gptfast: CommandLine) -> None:
    document = json.loads(gptfast.run("--version", "--json").stdout)
    assert list(document) == ["schema", "gptfast", "commit", "torch", "python", "backends"]
    assert document["schema"] == "gptfast.version/1" and document["commit"] == find_commit()
    assert [backend["name"] for backend in document["backends"]] == list(BACKENDS)


@pytest.mark.parametrize("arguments", QUICK, ids=" ".join)
def test_help_and_version_load_nothing_slow(gptfast: CommandLine, arguments: list[str]) -> None:
    assert not _modules_loaded(gptfast, arguments) & SLOW_MODULES


@pytest.mark.slow  # not for its length: it wants a machine to itself
@pytest.mark.parametrize("arguments", QUICK, ids=" ".join)
def test_help_and_version_take_little_longer_than_their_libraries(gptfast: CommandLine, arguments: list[str]) -> None:
    # 0.3 s is the aim, of which typer and pydantic take two thirds; a ratio holds on a slow or busy machine too
    libraries = CommandLine(
        (gptfast.program[0], "-c", "import typer; from pydantic import TypeAdapter"), gptfast.environment
    )
    times = [(_seconds(gptfast, arguments), _seconds(libraries, [])) for _ in range(5)]
    ours, theirs = map(min, zip(*times, strict=True))
    assert ours < 2 * theirs


def _modules_loaded(command_line: CommandLine, arguments: list[str]) -> set[str]:
    """Top-level modules that the program imported, as Python's own import log tells."""
    python, *program = command_line.program
    logging = CommandLine((python, "-X", "importtime", *program), command_line.environment)
    log = logging.run(*arguments).stderr.decode()
    names = {line.rpartition("|")[2].strip() for line in log.splitlines() if line.startswith("import time:")}
    assert "gptfast_cli" in names
    return {name.partition(".")[0] for name in names}


def _seconds(command_line: CommandLine, arguments: list[str]) -> float:
    start = time.perf_counter()
    assert command_line.run(*arguments).returncode == 0
    return time.perf_counter() - start
