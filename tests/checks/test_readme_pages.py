"""The pages of documentation: links, paths, commands and options that they name exist."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from gptfast_cli.app import command_tree
from gptfast_cli.core.families import families

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "gptfast_cli" / "docs"
PAGES = [ROOT / "README.md", ROOT / "tests" / "recipe" / "README.md", *sorted(DOCS.glob("*.md"))]
TREE = typer.main.get_group(command_tree(plain=True))
COMMANDS = TREE.commands
FOLDERS_OF_PATHS = (ROOT, ROOT / "gptfast_cli", ROOT / "gptfast_cli" / "core")


def of_each_page() -> pytest.MarkDecorator:
    return pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])


def options_of(name: str) -> set[str]:
    """All options of a command, or of `gptfast` itself where the name is empty."""
    command = COMMANDS[name] if name else TREE
    return {flag for each in command.params for flag in (*each.opts, *each.secondary_opts)} | {"-h", "--help"}


def command_lines(text: str) -> Iterator[list[str]]:
    """Words of every `gptfast` line in the console and shell blocks of a page, without comments and pipes."""
    for kind, block in re.findall(r"^```(console|sh)\n([\s\S]*?)^```", text, re.MULTILINE):
        for line in block.replace("\\\n", " ").split("\n"):
            if kind == "console" and not line.startswith("$ "):
                continue
            words = shlex.split(line.removeprefix("$ "), comments=True)
            if "gptfast" in words[:1] or "gptfast_cli" in words:
                yield words[words.index("gptfast" if "gptfast" in words[:1] else "gptfast_cli") + 1 :]


def unknown_options(words: list[str]) -> list[str]:
    name = words[0] if words and not words[0].startswith("-") else ""
    if name and name not in COMMANDS:
        return [name]
    given = [word.partition("=")[0] for word in words if word.startswith("--") or re.fullmatch("-[a-z]", word)]
    return [flag for flag in given if flag not in options_of(name)]


@of_each_page()
def test_links_of_a_page_lead_to_files_and_headings_that_are_there(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s:]*)\)", page.read_text()):
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings], link


@of_each_page()
def test_paths_that_a_page_names_are_there(page: Path) -> None:
    for path in re.findall(r"(?<![\w/-])(?:tests|core|commands|render|bundled)/[\w./-]*\w", page.read_text()):
        if path.isupper() or "NAME" in path:  # a file to be written
            continue
        assert any((folder / path).exists() for folder in FOLDERS_OF_PATHS), path


@of_each_page()
def test_commands_and_options_in_the_blocks_of_a_page_exist(page: Path) -> None:
    for words in command_lines(page.read_text()):
        assert not unknown_options(words), words


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_page_whose_options_exist(name: str) -> None:
    known = set().union(*map(options_of, ("", *COMMANDS)))
    text = (DOCS / f"{name}.md").read_text()
    assert text.startswith(f"# gptfast {name}\n")
    assert set(re.findall(r"`(--[a-z-]+)", text)) - known == set()
    assert "```console\n$ gptfast " in text or "```sh\ngptfast " in text


def test_a_command_or_option_that_is_not_there_would_be_found() -> None:
    page = '```sh\ngptfast genrate\ngptfast generate "x" --tempo 1 # --no\ngptfast --list\nls --all\n```\n'
    assert [unknown_options(words) for words in command_lines(page)] == [["genrate"], ["--tempo"], []]


def test_the_readme_links_every_page() -> None:
    readme = (ROOT / "README.md").read_text()
    assert [page.name for page in DOCS.glob("*.md") if f"(gptfast_cli/docs/{page.name})" not in readme] == []


def test_the_page_of_models_names_every_family_and_what_it_reads() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \|", (DOCS / "models.md").read_text(), re.MULTILINE)
    assert rows == [(name, ", ".join(f"`{each}`" for each in families[name].model_types)) for name in families]


def test_the_example_of_a_family_is_its_file() -> None:
    class_block, sizes = re.findall(
        r"^```python\n(.*?)^```", (DOCS / "contributing.md").read_text(), re.DOTALL | re.MULTILINE
    )
    file = (ROOT / "gptfast_cli" / "core" / "families" / "seed_oss.py").read_text()
    assert re.sub(r'    """.*?"""\n\n', "", file).split("\n\n\n")[1] == class_block.rstrip()
    assert sizes in (ROOT / "tests" / "families" / "random_models.py").read_text()


def is_source(file: Path) -> bool:
    """Whether it is more than what Python leaves of a module that was moved."""
    return file.is_file() and "__pycache__" not in file.parts


def test_the_map_of_the_source_names_every_folder() -> None:
    text = (DOCS / "contributing.md").read_text()
    tree = text.partition("```text\n")[2].partition("```")[0]
    named = set(re.findall(r"^ +(\w+)/ ", tree, re.MULTILINE))
    folders = [each for top in ("gptfast_cli", "gptfast_cli/core") for each in (ROOT / top).iterdir() if each.is_dir()]
    assert named == {folder.name for folder in folders if any(map(is_source, folder.rglob("*")))}


def test_the_life_of_a_token_names_at_most_12_files_in_order() -> None:
    text = (DOCS / "contributing.md").read_text().partition("## The life of a token")[2].partition("\n## ")[0]
    steps = re.findall(r"^(\d+)\. \[", text, re.MULTILINE)
    assert 0 < len(steps) <= 12 and steps == [str(n + 1) for n in range(len(steps))]
    files = re.findall(r"\]\(\.\./([^)]+)\)", text)
    assert len(files) == len(steps)
    code = "".join((ROOT / "gptfast_cli" / file).read_text() for file in files)
    names = [part for name in re.findall(r"`(\w+(?:(?:\.|::)\w+)*)`", text) for part in re.split(r"\.|::", name)]
    assert [name for name in names if not re.search(rf"\b{name}\b", code)] == []
