"""What completion answers: from the command tree, without PyTorch, and never with an error."""

import inspect
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.command_line import ROOT, CommandLine
from cli.shell_in_terminal import COMPLETION_LINES
from gptfast_cli.app import command_tree
from gptfast_cli.commands import COMMANDS
from gptfast_cli.completion.answer import Answer, Paths, answer_shell, complete, split_line
from gptfast_cli.completion.scripts import FILE_NAMES, SCRIPTS, Shell

STORED = "org/name:int4-g32"
CACHED = "meta/llama"
QUESTIONS = ["gptfast ", "gptfast gen", "gptfast generate --mo", "gptfast generate -m ti", "gptfast --remove o"]
QUESTIONS += ["gptfast bench --mode i", "gptfast bench --arch l"]
SLOW_MODULES = {"torch", "numpy", "transformers", "huggingface_hub", "safetensors", "tokenizers", "pydantic"}


@pytest.fixture(autouse=True)
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store and a Hugging Face cache with one model in each."""
    stored = tmp_path / "home" / "checkpoints" / "org--name@int4-g32"
    stored.mkdir(parents=True)
    (stored / "gptfast.json").write_text("a damaged one is completed too, to be removed")
    (tmp_path / "hub" / "models--meta--llama" / "snapshots").mkdir(parents=True)
    monkeypatch.setenv("GPTFAST_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))


def answer_to(line: str) -> Answer:
    return complete(command_tree(plain=True), split_line(line)[1:])


def values(line: str) -> list[str]:
    return [value for value, _ in answer_to(line).values]


def test_commands_are_completed_with_their_help() -> None:
    assert values("gptfast ") == [command.name for command in COMMANDS]
    assert answer_to("gptfast gen").values == (
        ("generate", "Continue a prompt, or answer it as a chat model, and report the speed."),
    )


@pytest.mark.parametrize(
    ("line", "completed"),
    [
        ("gptfast --rem", ["--remove"]),
        ("gptfast generate --tempe", ["--temperature"]),
        ("gptfast convert -", ["--out", "--dtype", "--tokenizer-from", "--lora", "--verify", "--allow-pickle"]),
        ('gptfast generate "a prompt with spaces" --mod', ["--model"]),
        ("gptfast generate --seed 1 --see", []),
        ("gptfast generate --stop a --sto", ["--stop"]),  # may be repeated
        ("gptfast generate --seed --te", []),  # a value is due here
    ],
)
def test_options_are_completed_once_unless_they_may_be_repeated(line: str, completed: list[str]) -> None:
    assert values(line)[: len(completed)] == completed
    assert completed or not values(line)


@pytest.mark.parametrize(
    ("line", "completed"),
    [
        ("gptfast generate -m ti", ["tiny", "tiny-draft"]),
        ("gptfast generate --model=ti", ["--model=tiny", "--model=tiny-draft"]),
        ("gptfast generate -qm ti", ["tiny", "tiny-draft"]),
        ("gptfast generate -m org/name:", [STORED]),
        ("gptfast generate -m me", [CACHED]),
        ("gptfast convert me", [CACHED]),
        ("gptfast --remove ", [STORED, CACHED]),
        ("gptfast generate --device cu", ["cuda"]),
        ("gptfast generate --dtype b", ["bfloat16"]),
        ("gptfast bench --kv-dtype ", ["auto", "int8"]),
        ("gptfast generate --draft a", ["auto"]),
        ("gptfast speculate --draft a", []),
        ("gptfast quantize ti", ["tiny", "tiny-draft"]),
        ("gptfast quantize --mode int4", ["int4", "int4-gptq", "int4-search"]),
        ("gptfast quantize --mode int8-", ["int8-gptq", "int8-search"]),
        ("gptfast quantize --mode p", ["plain"]),
        ("gptfast quantize --calibration b", ["bundled"]),
        ("gptfast quantize --head=in", ["--head=int4", "--head=int8"]),
        ("gptfast quantize --groupsize 1", ["128"]),
        ("gptfast quantize --rounding ", ["gptq", "nearest", "search"]),
        ("gptfast bench --mode int", ["int4", "int8"]),
        ("gptfast bench --head pl", ["plain"]),
        ("gptfast bench --embeddings=int8", ["--embeddings=int8"]),
        ("gptfast bench --arch llama-3.1", ["llama-3.1-405b", "llama-3.1-70b", "llama-3.1-8b"]),
        ("gptfast bench --output ", ["csv", "json", "jsonl", "md"]),
        ("gptfast --show-completion ", ["bash", "zsh", "fish", "powershell"]),
    ],
)
def test_values_are_completed(line: str, completed: list[str]) -> None:
    assert values(line) == completed


@pytest.mark.parametrize(
    ("line", "paths"),
    [
        ("gptfast generate -m ", Paths.FOLDERS),
        ("gptfast generate --model=./", Paths.FOLDERS),
        ("gptfast convert ", Paths.FOLDERS),
        ("gptfast convert --out ", Paths.FOLDERS),
        ("gptfast generate --prompt-file ", Paths.FILES),
        ("gptfast bench --arch ./", Paths.FILES),
        ("gptfast quantize --calibration ./", Paths.FILES),
        ("gptfast --remove ", Paths.NONE),
    ],
)
def test_the_shell_is_asked_for_the_paths_that_fit(line: str, paths: Paths) -> None:
    assert answer_to(line).paths == paths


@pytest.mark.parametrize(
    "line",
    [
        "gptfast generate Onc",  # a prompt is free text
        "gptfast generate -- --te",
        "gptfast generate --stop T",
        "gptfast generate --seed ",
        "gptfast convert here the",  # one argument too many
        "gptfast nosuch --mo",
        "gptfast generate --nosuch=",
    ],
)
def test_nothing_is_completed_where_nothing_is_known(line: str) -> None:
    assert answer_to(line) == Answer()


def path_options() -> Iterator[tuple[str, str]]:
    for command in COMMANDS:
        for name, parameter in inspect.signature(command.function).parameters.items():
            if "Path" in str(parameter.annotation):
                yield command.name, name


@pytest.mark.parametrize(("command", "option"), list(path_options()))
def test_every_option_that_is_a_path_completes_paths(command: str, option: str) -> None:
    assert answer_to(f"gptfast {command} --{option.replace('_', '-')} ").paths != Paths.NONE


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("a b", ["a", "b"]),
        ("a b ", ["a", "b", ""]),
        ('a "b c', ["a", "b c"]),
        ("a 'b \"c ", ["a", 'b "c ']),
        (r"a my\ mo", ["a", "my mo"]),
        ("a my\\ ", ["a", "my "]),
        ("a my\\", ["a", "my"]),
        ("a b#c $d", ["a", "b#c", "$d"]),
        ("a 'ü\n(1)' ", ["a", "ü\n(1)", ""]),
        ("", [""]),
    ],
)
def test_a_line_is_split_as_a_shell_splits_it(line: str, words: list[str]) -> None:
    assert split_line(line) == words


@pytest.mark.parametrize(
    ("line", "end", "replacement"),
    [
        ("gptfast generate -m org/name:in", "in", "int4-g32"),
        ("gptfast generate -m org/name:", "", "int4-g32"),
        ("gptfast generate --model=or", "or", STORED),
        ("gptfast generate --model=org/name:i", "i", "int4-g32"),
        ('gptfast generate -m "org/name:i', "org/name:i", STORED),
        ("gptfast generate -m org/na", None, STORED),
    ],
)
def test_of_a_word_only_the_end_that_the_shell_replaces_is_answered(
    line: str, end: str | None, replacement: str
) -> None:
    assert answer_shell(command_tree(plain=True), line, end) == f"folders\n{replacement}\t\n"


@pytest.mark.parametrize("line", ["", "gptfast", "'"])
def test_a_question_without_a_word_to_complete_has_an_empty_answer(line: str) -> None:
    assert answer_shell(command_tree(plain=True), line, None) == "none\n"


def test_a_store_that_cannot_be_read_is_an_empty_answer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(folder: Path) -> Iterator[Path]:
        raise PermissionError(folder)

    monkeypatch.setattr(Path, "iterdir", refuse)
    assert answer_shell(command_tree(plain=True), "gptfast generate -m ", None) == "none\n"


def test_a_broken_settings_file_is_not_spoken_of(gptfast: CommandLine, home: Path) -> None:
    settings = home / ".config" / "gptfast" / "config.toml"
    settings.parent.mkdir(parents=True)
    settings.write_text("[nonsense")
    outcome = gptfast.with_environment(_GPTFAST_COMPLETE="gptfast generate --tempe").run()
    assert outcome.returncode == 0 and outcome.stderr == b""
    assert outcome.stdout.splitlines() == [b"none", b"--temperature\tSampling temperature; 0: greedy."]


@pytest.mark.parametrize("line", QUESTIONS)
def test_a_question_loads_nothing_slow(gptfast: CommandLine, line: str) -> None:
    python, *program = gptfast.program
    home = {"GPTFAST_HOME": os.environ["GPTFAST_HOME"], "_GPTFAST_COMPLETE": line}
    outcome = CommandLine((python, "-X", "importtime", *program), gptfast.environment).with_environment(**home).run()
    assert len(outcome.stdout.splitlines()) > 1
    imported = {entry.rpartition("|")[2].strip() for entry in outcome.stderr.decode().splitlines()}
    assert "gptfast_cli.app" in imported and not imported & SLOW_MODULES


@pytest.mark.parametrize("shell", Shell)
def test_the_program_prints_each_script(gptfast: CommandLine, shell: Shell) -> None:
    assert gptfast.run("--show-completion", shell).stdout.decode() == SCRIPTS[shell]


@pytest.mark.parametrize("shell", COMPLETION_LINES)
def test_a_script_says_how_it_is_turned_on(shell: str) -> None:
    assert COMPLETION_LINES[shell] in SCRIPTS[Shell(shell)].partition("{")[0]


def test_the_scripts_in_the_repository_are_those_of_the_program(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "gptfast_cli.completion", str(tmp_path / "written")]
    subprocess.run(command, cwd=ROOT, check=True, timeout=60)
    written = {path.name: path.read_bytes() for path in (tmp_path / "written").iterdir()}
    assert written.keys() == set(FILE_NAMES.values())
    kept = {path.name: path.read_bytes() for path in (ROOT / "completions").iterdir()}
    assert kept == written, "python -m gptfast_cli.completion completions"
