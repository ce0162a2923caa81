"""Measured samples of the documentation say where they were measured, and the tool that writes them finds each."""

import re

import pytest

from speed.samples import PAGES, SAMPLE, shown

TEXTS = {page.name: page.read_text(encoding="utf-8") for page in PAGES}


@pytest.mark.parametrize("page", TEXTS)
def test_every_sample_that_names_a_speed_is_written_by_the_tool(page: str) -> None:
    text = TEXTS[page]
    found = {sample["command"] for sample in SAMPLE.finditer(text)}
    blocks = re.findall(r"```console\n\$ ((?:.*\\\n)*.*)\n([\s\S]*?)```", text)
    timed = {command for command, output in blocks if re.search(r"tok/s|speed-up", output) and "--plan" not in command}
    assert timed == {command for command in found if command in timed}
    assert text.count("<!-- sample") - text.count("`<!-- sample") == len(found)


def test_the_pages_of_the_commands_that_measure_speed_have_samples() -> None:
    for page in ("README.md", "generate.md", "speculate.md", "bench.md", "distributed.md"):
        assert SAMPLE.search(TEXTS[page]), page


@pytest.mark.parametrize("page", TEXTS)
def test_each_sample_tells_the_level_of_the_memory_and_the_commit(page: str) -> None:
    for sample in SAMPLE.finditer(TEXTS[page]):
        assert re.search(r"memory reads [\d.]+ GB/s before and [\d.]+ after", " ".join(sample["about"].split()))
        assert re.search(r"commit [0-9a-f]{10}", " ".join(sample["about"].split()))


@pytest.mark.parametrize(
    ("kept", "lines"),
    [
        (None, "a 1\na 2\n\nb\n\nc\n"),
        ("a", "a 1\na 2\n...\n"),
        ("a | c", "a 1\na 2\n...\nc\n"),
        ("a | b | c", "a 1\na 2\n\nb\n\nc\n"),
        ("c", "...\nc\n"),
        ("a 1 | a", "a 1\na 2\n...\n"),
        ("a 1.5", "...\n"),
    ],
)
def test_paragraphs_that_are_not_kept_become_three_dots(kept: str | None, lines: str) -> None:
    assert shown("a 1\nquantize: 2 of 6 blocks, 15.9 s left\na 2\n\nb\n\nc\n", kept) == lines


def test_lines_are_folded_as_in_a_terminal() -> None:
    assert shown("x" * 161, None).split("\n") == ["x" * 80, "x" * 80, "x", ""]
