"""Names and patterns stand for tasks, and a name that is none is answered with those that may have been meant."""

import pytest

from gptfast_cli.core.errors import NotFoundError
from gptfast_cli.core.evals.tasks.requests import match_tasks

KNOWN = ("arc_challenge", "arc_easy", "hellaswag", "mmlu", "mmlu_anatomy", "mmlu_law", "winogrande")


def test_patterns_stand_for_all_that_match_and_nothing_comes_twice() -> None:
    assert match_tasks(["mmlu_*", "hellaswag", "*_law"], KNOWN) == ["mmlu_anatomy", "mmlu_law", "hellaswag"]


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("helaswag", " Similar: hellaswag."),
        ("mmlu_lore", " Similar: mmlu_law, mmlu."),
        ("arc", " Similar: arc_challenge, arc_easy."),
        ("zzz", ""),
        ("", ""),
    ],
)
def test_a_name_that_is_none_is_reported_with_those_near_it(name: str, near: str) -> None:
    with pytest.raises(NotFoundError) as error:
        match_tasks([name], KNOWN)
    assert error.value.message == f"task {name!r} not found.{near}"
