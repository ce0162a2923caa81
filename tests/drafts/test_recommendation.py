"""The verdict names what gains most at each batch size, in one line, and says so where nothing does."""

from dataclasses import replace

import pytest

from gptfast_cli.core.drafts.recommendation import median_error, recommendations_of, verdict_of
from gptfast_cli.core.drafts.report import Interval, Noise, Recommendation, ValidationRun
from sample_report import sample_report


def recommendation(
    batch_size: int, draft: str | None = None, k: int | None = None, value: float = 0, t: float = 0.0
) -> Recommendation:
    return Recommendation(t, batch_size, draft, k, Interval(value, value - 0.05, value + 0.05) if draft else None)


UNCLEAR = Recommendation(0.0, 4, None, None, None, is_unclear=True)


@pytest.mark.parametrize(
    ("recommendations", "says"),
    [
        ([recommendation(1, "d", 4, 1.71)], "Use d, k = 4: 1.71x [1.66, 1.76] at batch 1"),
        (
            [recommendation(1, "d", 4, 1.71), recommendation(2, "d", 3, 1.5), recommendation(16), recommendation(32)],
            "Use d, k = 4: 1.71x [1.66, 1.76] at batch 1, k = 3: 1.50x at batch 2; no draft from batch 16",
        ),
        ([recommendation(1), recommendation(8)], "No draft from batch 1"),
        (
            [recommendation(1), recommendation(2), recommendation(8, "d", 2, 1.2)],
            "No draft at batch 1 to 2; use d, k = 2: 1.20x [1.15, 1.25] at batch 8",
        ),
        (
            [recommendation(1), UNCLEAR, recommendation(8)],
            "No draft at batch 1; no clear gain at batch 4; no draft from batch 8",
        ),
        ([], "Nothing was measured yet"),
        (
            [recommendation(1, "d", 4, 1.7), recommendation(1, t=1.0)],
            "Temperature 0: use d, k = 4: 1.70x [1.65, 1.75] at batch 1\nTemperature 1: no draft from batch 1",
        ),
    ],
)
def test_a_line_for_each_temperature_says_what_to_use(recommendations: list[Recommendation], says: str) -> None:
    assert verdict_of(recommendations) == says
    assert verdict_of(recommendations, Noise(0.97, 1.03)) == says


def test_a_noisy_machine_is_named_before_all_else() -> None:
    first, second = verdict_of([recommendation(1)], Noise(0.8, 1.2)).split("\n")
    assert first == "Noisy machine: equal runs of plain decoding differ by 50%. The results are approximate"
    assert second == "No draft from batch 1"


def test_errors_count_without_their_signs_and_without_plain_decoding() -> None:
    def run(draft: str | None, error: float) -> ValidationRun:
        return ValidationRun(draft, 0.0, 1, 1, 1, 1.0, Interval(1, 1, 1), error)

    assert median_error([run("a", -0.04), run("b", 0.01), run(None, 0.9), run("c", 0.02)]) == 0.02
    assert median_error([run("a", -0.04), run("b", 0.01)]) == pytest.approx(0.025)
    assert median_error([run(None, 0.9)]) is None


def picked(speedups: dict[int, Interval]) -> Recommendation:
    """From a draft with these speed-ups by k."""
    sample = sample_report().drafts[0]
    grid = tuple(replace(sample.grid[0], k=k, batch_size=1, predicted=speedup) for k, speedup in speedups.items())
    return recommendations_of([replace(sample, grid=grid)])[0]


def narrow(value: float) -> Interval:
    return Interval(value, value - 0.02, value + 0.02)


@pytest.mark.parametrize(
    ("speedups", "k", "is_unclear"),
    [
        ({1: narrow(1.5), 2: narrow(1.8), 3: narrow(1.7)}, 2, False),
        ({1: narrow(1.5), 2: narrow(1.01)}, 1, False),
        ({1: narrow(1.02), 2: narrow(0.9)}, None, False),
        ({1: Interval(9.0, 0.9, 20.0), 2: narrow(1.2)}, 2, False),
        ({1: Interval(1.2, 0.99, 1.3)}, None, True),
        ({1: Interval(2.14, 1.51, 2.78), 2: narrow(0.8)}, None, True),
    ],
    ids=["the best", "no less than 1.03", "losing", "spanning 1 beside a clear one", "spanning 1", "wide"],
)
def test_only_a_clear_gain_is_picked(speedups: dict[int, Interval], k: int | None, is_unclear: bool) -> None:
    assert (picked(speedups).k, picked(speedups).is_unclear) == (k, is_unclear)


def test_a_k_that_stands_out_of_its_neighbours_is_not_picked_while_others_gain() -> None:
    curve = {5: narrow(1.2), 6: narrow(1.27), 7: narrow(2.14), 8: narrow(1.8)}
    assert picked(curve).k == 8
    assert picked({1: narrow(1.3), 2: narrow(1.9)}).k == 2, "a round of 2 has up to 3 / 2 of the tokens of one of 1"
    assert picked({1: narrow(0.6), 2: narrow(1.9)}).k == 2, "nothing else gains"
    assert picked({2: narrow(1.2), 8: narrow(2.0)}).k == 8, "k 2 says nothing of k 8"


def test_the_shortest_of_equally_good_drafts_is_picked() -> None:
    assert picked({4: narrow(1.70), 5: narrow(1.78), 6: narrow(1.80), 7: narrow(1.79)}).k == 5
