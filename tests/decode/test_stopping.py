"""Stop strings end the text exactly, wherever the edges of its pieces fall."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from gptfast_cli.core.decode.stopping import StopStrings

letters = st.text(alphabet="ab", max_size=30)


def pieces_of(text: str, cuts: list[int]) -> list[str]:
    edges = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    return [text[start:end] for start, end in itertools.pairwise(edges)]


@given(text=letters, cuts=st.lists(st.integers(min_value=0), max_size=8), stops=st.lists(letters.filter(bool)))
def test_the_text_before_the_first_stop_comes_out_and_nothing_else(
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
    # of stops that complete in different pieces the first to complete counts, so the text up to there is the oracle
    ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
    if not ends:
        assert shown == text
        assert not stopping.found
    else:
        assert stopping.found
        assert any(shown + stop == text[: len(shown) + len(stop)] for stop in stops)


def test_text_that_cannot_begin_a_stop_comes_out_at_once() -> None:
    stopping = StopStrings(["\n\n"])
    assert stopping.push("one\n") == "one"
    assert stopping.push("two") == "\ntwo"


def test_without_stops_nothing_is_held_back() -> None:
    assert StopStrings([]).push("text") == "text"
