"""Stop strings end the text exactly, wherever the edges of its pieces fall."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptfast_cli.core.engine.request import StopStrings

letters = st.text(alphabet="ab", max_size=30)
short = st.text(alphabet="ab", max_size=4)


def pieces_of(text: str, cuts: list[int]) -> list[str]:
    edges = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    return [text[start:end] for start, end in itertools.pairwise(edges)]


def before_the_stop(text: str, stops: list[str]) -> str | None:
    """The rule, read character by character: the text before the longest stop that ends first; None without one."""
    for end in range(len(text) + 1):
        if ending := [stop for stop in stops if text[:end].endswith(stop)]:
            return text[: end - max(map(len, ending))]
    return None


@given(text=letters, cuts=st.lists(st.integers(min_value=0), max_size=8), stops=st.lists(short.filter(bool)))
def test_the_text_before_the_first_complete_stop_comes_out_however_it_is_cut(
    text: str, cuts: list[int], stops: list[str]
) -> None:
    stopping = StopStrings(stops)
    shown = ""
    for piece in pieces_of(text, cuts):
        shown += stopping.push(piece)
        # a prefix that has come out must never have to be taken back
        assert not any(stop in shown for stop in stops)
        if stopping.found:
            break
    shown += stopping.finish()
    expected = before_the_stop(text, stops)
    assert stopping.found == (expected is not None)
    assert shown == (text if expected is None else expected)


@pytest.mark.parametrize(
    ("stops", "shown"), [(["aXb", "X"], "1a"), (["ab", "b"], "1aX"), (["aXb", "b"], "1"), (["Xb2", "aXb"], "1")]
)
@pytest.mark.parametrize("pieces", [["1aXb2"], ["1", "a", "X", "b", "2"], ["1aX", "b2"]])
def test_of_nested_stops_the_first_to_end_counts_and_of_two_that_end_together_the_longer(
    pieces: list[str], stops: list[str], shown: str
) -> None:
    stopping = StopStrings(stops)
    assert "".join(map(stopping.push, pieces)) == shown
    assert stopping.found


def test_text_that_cannot_begin_a_stop_comes_out_at_once() -> None:
    stopping = StopStrings(["\n\n"])
    assert stopping.push("one\n") == "one"
    assert stopping.push("two") == "\ntwo"


def test_without_stops_nothing_is_held_back() -> None:
    assert StopStrings([]).push("text") == "text"
