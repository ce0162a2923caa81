"""Completion in real shells, typed into as a person would."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.command_line import ROOT
from cli.shell_in_terminal import COMPLETION_LINES, ShellInTerminal, shell_in_terminal

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=COMPLETION_LINES)
def shell(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ShellInTerminal]:
    """A shell in a folder with files and folders of difficult names, and with models in the store and the cache."""
    _skip_without(request.param, "tmux")
    home, folder = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("work")
    for stored in ("org--name@int4-g32", "org--name@int8"):
        checkpoint = home / ".cache" / "gptfast" / "checkpoints" / stored
        checkpoint.mkdir(parents=True)
        (checkpoint / "gptfast.json").write_text("a damaged one is completed too")
    for cached in ("models--meta--llama", "models--odd--a $b (c)'s"):
        (home / ".cache" / "huggingface" / "hub" / cached / "snapshots").mkdir(parents=True)
    (home / "elsewhere").mkdir()
    (folder / "my models" / "llama 2").mkdir(parents=True)
    (folder / "orgs").mkdir()
    (folder / "prompts.txt").touch()
    (folder / "story & $tale (1) 'ü'.txt").touch()
    with shell_in_terminal(request.param, home, folder, COMPLETION_LINES[request.param]) as shell:
        yield shell


def _skip_without(*programs: str) -> None:
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("gptfast gen", "gptfast generate "),
        ("gptfast generate --te", "gptfast generate --temperature "),
        ("gptfast generate -m ti", "gptfast generate -m tiny"),
        ("gptfast generate -m org/", "gptfast generate -m org/name:int"),
        ("gptfast generate -m org/name:int4", "gptfast generate -m org/name:int4-g32 "),
        ("gptfast generate --model=org/name:int4", "gptfast generate --model=org/name:int4-g32 "),
        ('gptfast generate -m "org/name:int4', 'gptfast generate -m "org/name:int4-g32" '),
        ("gptfast convert me", "gptfast convert meta/llama "),
        ("gptfast convert odd", r"gptfast convert odd/a\ \$b\ \(c\)\'s "),
        ("gptfast --remove org/name:int8", "gptfast --remove org/name:int8 "),
        ("gptfast generate x --dtype=bf", "gptfast generate x --dtype=bfloat16 "),
        ('gptfast generate "a prompt with spaces" --mo', 'gptfast generate "a prompt with spaces" --model '),
        (r"gptfast generate it\'s\ so --mo", r"gptfast generate it\'s\ so --model "),
        ("cd / && gptfast gen", "cd / && gptfast generate "),
        ("~/bin/gptfast gen", "~/bin/gptfast generate "),
    ],
)
def test_words_are_completed(shell: ShellInTerminal, typed: str, completed: str) -> None:
    assert shell.completed(typed) == completed


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("gptfast convert my", r"gptfast convert my\ models/"),
        (r"gptfast convert my\ models/", r"gptfast convert my\ models/llama\ 2/"),
        ("gptfast convert x --out my", r"gptfast convert x --out my\ models/"),
        ("gptfast convert x --out=my", r"gptfast convert x --out=my\ models/"),
        ("gptfast convert ~/else", "gptfast convert ~/elsewhere/"),
        ("gptfast generate -m orgs", "gptfast generate -m orgs/"),
        ("gptfast convert pro", "gptfast convert pro"),  # a file, where a folder is asked for
        ("gptfast generate --prompt-file pro", "gptfast generate --prompt-file prompts.txt "),
        ("gptfast generate --prompt-file=pro", "gptfast generate --prompt-file=prompts.txt "),
        (
            "gptfast generate --prompt-file sto",
            r"gptfast generate --prompt-file story\ \&\ \$tale\ \(1\)\ \'ü\'.txt ",
        ),
        ("gptfast generate x > pro", "gptfast generate x > prompts.txt "),
    ],
)
def test_paths_are_completed(shell: ShellInTerminal, typed: str, completed: str) -> None:
    assert shell.completed(typed) == completed


def test_a_folder_is_completed_inside_an_open_quote(shell: ShellInTerminal) -> None:
    assert shell.completed("gptfast convert 'my mo").startswith("gptfast convert 'my models")


@pytest.mark.parametrize(
    "typed",
    [
        "gptfast generate pro",
        "gptfast generate -- pro",
        "gptfast generate -- --te",
        'gptfast generate "half typ',
        "gptfast generate 'half typ",
        "gptfast nosuch pro",
    ],
)
def test_what_cannot_be_completed_stays_as_it_was_typed(shell: ShellInTerminal, typed: str) -> None:
    assert shell.completed(typed) == typed


def test_the_commands_are_listed(shell: ShellInTerminal) -> None:
    shell.listed("gptfast ", "download", "convert", "quantize", "generate", "speculate", "eval", "bench")


def test_names_and_folders_are_listed_together(shell: ShellInTerminal) -> None:
    shell.listed("gptfast generate -m org", "orgs/", "int8")


@pytest.mark.parametrize("shell", ["zsh", "fish"], indirect=True)  # bash has no place for it
def test_the_help_is_shown_beside_the_values(shell: ShellInTerminal) -> None:
    shell.listed("gptfast ", "Continue a prompt with text")
    shell.listed("gptfast generate --m", "Most tokens, prompt included.")


def test_no_question_leaves_anything_on_the_screen_where_the_program_is_gone(shell: ShellInTerminal) -> None:
    assert shell.completed("/nowhere/gptfast gen") == "/nowhere/gptfast gen"


@pytest.mark.parametrize(
    ("name", "script", "place", "line"),
    [
        (
            "bash",
            "gptfast.bash",
            ".local/share/bash-completion/completions",
            "source /usr/share/bash-completion/bash_completion",
        ),
        ("zsh", "_gptfast", "functions", "fpath+=(~/functions); autoload -Uz compinit; compinit -u"),
        ("fish", "gptfast.fish", ".config/fish/completions", ""),
    ],
)
def test_a_shell_finds_a_script_where_it_looks_for_scripts(
    tmp_path: Path, name: str, script: str, place: str, line: str
) -> None:
    _skip_without(name, "tmux")
    if name == "bash" and not Path("/usr/share/bash-completion/bash_completion").exists():
        pytest.skip("bash-completion is not installed")
    home = tmp_path / "home"
    (home / place).mkdir(parents=True)
    shutil.copy(ROOT / "completions" / script, home / place)
    with shell_in_terminal(name, home, tmp_path, line) as shell:
        assert shell.completed("gptfast gen") == "gptfast generate "
        assert shell.completed("gptfast generate -m tiny-") == "gptfast generate -m tiny-draft "
