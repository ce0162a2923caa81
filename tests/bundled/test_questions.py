"""The bundled questions are what the recipe makes, and their answers are right."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from gptfast_cli import bundled
from recipe import questions

BUNDLED = Path(bundled.__file__).parent / "tasks"


def rows(kind: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (BUNDLED / f"{kind}.jsonl").read_text().splitlines()]


def test_the_files_are_what_the_recipe_writes(tmp_path: Path) -> None:
    questions.write_questions(tmp_path)
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {
        file.name: file.read_text() for file in BUNDLED.iterdir()
    }


@pytest.mark.parametrize("kind", questions.KINDS)
def test_there_are_as_many_questions_and_none_twice(kind: str) -> None:
    lines = (BUNDLED / f"{kind}.jsonl").read_text().splitlines()
    assert len(lines) == len(set(lines)) == questions.N_QUESTIONS


def test_a_wrong_choice_has_a_word_that_the_document_never_used_where_the_right_one_repeats_one() -> None:
    for row in rows("choice"):
        right = row["choices"][row["answer"]]
        assert len(set(row["choices"])) == questions.N_CHOICES
        for wrong in set(row["choices"]) - {right}:
            unknown = set(re.findall(r"\w+", wrong)) - set(re.findall(r"\w+", row["context"]))
            assert unknown - set(re.findall(r"\w+", right))


def test_a_word_to_be_found_stands_in_the_text_before() -> None:
    for row in rows("cloze"):
        assert re.search(rf"\b{row['word'].strip()}\b", row["context"]) and row["word"].startswith(" ")


def test_sums_are_right() -> None:
    for row in rows("sums"):
        expression, value = row["answer"].split(" = ")
        assert re.fullmatch(r" \d+ [-+*] \d+", expression) and eval(expression) == int(value)
        assert all(number in row["prompt"] for number in re.findall(r"\d+", expression))
