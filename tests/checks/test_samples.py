"""Measured samples of the README say where they were measured, and the tool that writes them finds each."""

import re
from pathlib import Path

import pytest

from speed.samples import SAMPLE, shown

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def test_every_sample_that_names_a_speed_is_written_by_the_tool() -> None:
    found = {sample["command"] for sample in SAMPLE.finditer(README)}
    blocks = re.findall(r"```console\n\$ ((?:.*\\\n)*.*)\n([\s\S]*?)```", README)
    timed = {command for command, output in blocks if re.search(r"tok/s|speed-up", output) and "--plan" not in command}
    assert timed and timed == {command for command in found if command in timed}
    assert README.count("<!-- sample") == len(found)


def test_each_sample_tells_the_level_of_the_memory_and_the_commit() -> None:
    for sample in SAMPLE.finditer(README):
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
