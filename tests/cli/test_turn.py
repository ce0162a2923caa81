"""The numbers under an answer."""

import io
from typing import Any

import pytest

from gptfast_cli.core.jobs.chat import Turn
from gptfast_cli.render.chat import write_turn


def written(**changes: Any) -> str:
    numbers = {"prompt_tokens": 268, "n_fed": 20, "n_generated": 42, "max_context": 2048}
    times = {"ttft_s": 0.012, "decode_tok_s": 178.2}
    stream = io.StringIO()
    write_turn(Turn(**{"text": "x", "finish_reason": "eos", **numbers, **times, **changes}), stream)
    return stream.getvalue()


def test_a_whole_answer_has_one_line() -> None:
    assert written() == "42 tokens · 178 tok/s · TTFT 12.0 ms · context 310 of 2,048\n"


def test_what_was_not_measured_is_left_out() -> None:
    assert written(n_generated=1, ttft_s=None, decode_tok_s=None) == "1 token · context 269 of 2,048\n"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"finish_reason": "length"}, "Cut at --max-new-tokens."),
        ({"finish_reason": "interrupted"}, "Stopped; the answer is kept as far as it came."),
        ({"finish_reason": "interrupted", "text": ""}, "Stopped before it began; the message is not kept."),
    ],
)
def test_an_answer_that_is_not_whole_says_why(changes: dict[str, str], reason: str) -> None:
    assert written(**changes).splitlines()[1:] == [reason]


def test_the_lines_fit_80_columns_for_large_numbers_too() -> None:
    large = written(n_generated=99_999, prompt_tokens=10_000, max_context=131_072, ttft_s=61.0, decode_tok_s=9_999.0)
    assert max(map(len, large.splitlines())) <= 80
