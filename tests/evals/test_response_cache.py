"""Answers in a file come back as they were, whatever a kill or a stray hand has left of its last lines."""

from pathlib import Path

import pytest

from gptfast_cli.core.evals.tasks.evaluate import open_response_cache
from gptfast_cli.core.evals.tasks.requests import (
    GREEDY,
    Answer,
    GenerationRequest,
    LikelihoodAnswer,
    LikelihoodRequest,
    RollingRequest,
    TaskRequest,
)

ANSWERS: dict[TaskRequest, Answer] = {
    LikelihoodRequest("a", " b"): LikelihoodAnswer(-1.2345678901234567, is_greedy=True),
    LikelihoodRequest("a", " c"): LikelihoodAnswer(-float("inf"), is_greedy=False),
    RollingRequest("a\nb"): -0.1,
    GenerationRequest("a", ("\n",), 5, GREEDY): "two\nlines \u2028 é",
}


def written(path: Path) -> Path:
    with open_response_cache(path) as cache:
        for request, answer in ANSWERS.items():
            cache.put(request, answer)
    return path


def known(path: Path) -> dict[TaskRequest, Answer | None]:
    with open_response_cache(path) as cache:
        return {request: cache.get(request) for request in ANSWERS}


def test_answers_come_back_as_they_were(tmp_path: Path) -> None:
    assert known(written(tmp_path / "answers")) == ANSWERS


@pytest.mark.parametrize("end", ['["1a', '["1a", -1.5]', "\x00\x00\x00\n", "5\n", '["1a", {}]\n'])
def test_what_is_damaged_is_cut_off_and_answers_go_on_behind_it(end: str, tmp_path: Path) -> None:
    path = written(tmp_path / "answers")
    whole = path.read_text()
    path.write_text(whole + end)
    assert known(path) == ANSWERS and path.read_text() == whole
    another = RollingRequest("another")
    with open_response_cache(path) as cache:
        cache.put(another, -2.5)
    with open_response_cache(path) as cache:
        assert cache.get(another) == -2.5 and cache.n_found == len(ANSWERS) + 1


def test_a_second_run_at_the_same_time_keeps_its_answers_to_itself(tmp_path: Path) -> None:
    path = written(tmp_path / "answers")
    with open_response_cache(path), open_response_cache(path) as second:
        assert second.n_found == 0
        second.put(RollingRequest("x"), -1.0)
        second.remove()
        assert second.get(RollingRequest("x")) == -1.0
    assert known(path) == ANSWERS


def test_nothing_is_left_once_every_answer_has_been_marked(tmp_path: Path) -> None:
    path = written(tmp_path / "answers")
    with open_response_cache(path) as cache:
        cache.remove()
    assert not path.exists()
