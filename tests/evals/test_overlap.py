"""Overlap of texts: what was taken over is known again, what merely resembles is not."""

import random

import pytest

from gptfast_cli.core.checkpoints.manifest import CalibrationText
from gptfast_cli.core.errors import UsageError
from gptfast_cli.core.evals.held_out import RUN_WORDS, SKETCH_SIZE, measured_content, refuse_overlap, runs, sketch
from gptfast_cli.core.jobs.calibration_text import bundled_calibration

RANDOM = random.Random(0)


def text_of(n_words: int) -> str:
    return " ".join(str(RANDOM.randrange(10**6)) for _ in range(n_words))


def learned(text: str) -> CalibrationText:
    return CalibrationText("notes.txt", "0" * 64, 1, sketch(text))


def overlaps(measured: str, text: str) -> bool:
    try:
        refuse_overlap(measured, learned(text), what="story.txt")
    except UsageError as error:
        return (
            error.message.startswith("story.txt: overlaps with the calibration text") and "notes.txt" in error.message
        )
    return False


@pytest.mark.parametrize("n_words", [1, 5, RUN_WORDS, 300, 30_000])
def test_the_same_text_is_known_again_however_long_and_however_broken_into_lines(n_words: int) -> None:
    text = text_of(n_words)
    assert overlaps(text, text)
    assert overlaps(text.replace(" ", "\n"), text)


def test_a_piece_of_a_page_is_known_again_inside_of_another_text() -> None:
    text = text_of(3_000)
    piece = " ".join(text.split()[1_000:1_200])
    assert overlaps(f"{text_of(500)} {piece} {text_of(500)}", text)
    assert overlaps(piece, text)


def test_one_run_of_words_is_enough_where_the_text_is_short() -> None:
    words = text_of(400).split()
    text = " ".join(words)
    assert overlaps(" ".join([text_of(50), *words[200 : 200 + RUN_WORDS], text_of(50)]), text)
    assert not overlaps(" ".join([text_of(50), *words[200 : 199 + RUN_WORDS], text_of(50)]), text)


def test_another_text_of_the_same_words_does_not_overlap() -> None:
    words = text_of(2_000).split()
    assert not overlaps(" ".join(sorted(words)), " ".join(words))
    refuse_overlap(" ".join(words), None, what="story.txt")


def test_a_sketch_is_small_and_the_same_every_time() -> None:
    text = text_of(5_000)
    assert sketch(text) == sketch(text) == tuple(sorted(sketch(text)))
    assert len(sketch(text)) == SKETCH_SIZE and {len(part) for part in sketch(text)} == {16}


def test_the_bundled_text_to_calibrate_on_has_no_run_of_the_held_out_one() -> None:
    documents = bundled_calibration()[:300]
    assert set(runs(measured_content(None))).isdisjoint(run for text in documents for run in runs(text))
    assert len(set(documents)) > 250
