"""The verdict names what gains most at each batch size, in one line, and says so where nothing does."""

from dataclasses import replace

import pytest

from gptfast_cli.core.measure.drafts.judgement import Interval, Pick, Proof
from gptfast_cli.core.measure.drafts.verdict import median_error, picks_of, verdict_of
from sample_judgement import judgement


def pick(batch_size: int, draft: str | None = None, k: int | None = None, value: float = 0, t: float = 0.0) -> Pick:
    return Pick(t, batch_size, draft, k, Interval(value, value - 0.05, value + 0.05) if draft else None)


@pytest.mark.parametrize(
    ("picks", "says"),
    [
        ([pick(1, "d", 4, 1.71)], "use d, k = 4: 1.71x [1.66, 1.76] at batch 1"),
        (
            [pick(1, "d", 4, 1.71), pick(2, "d", 3, 1.5), pick(16), pick(32)],
            "use d, k = 4: 1.71x [1.66, 1.76] at batch 1, k = 3: 1.50x at batch 2; no draft from batch 16",
        ),
        ([pick(1), pick(8)], "no draft from batch 1"),
        ([pick(1), pick(8, "d", 2, 1.2)], "no draft at batch 1; use d, k = 2: 1.20x [1.15, 1.25] at batch 8"),
        ([], "nothing is known yet"),
        (
            [pick(1, "d", 4, 1.7), pick(1, t=1.0)],
            "at temperature 0 use d, k = 4: 1.70x [1.65, 1.75] at batch 1; at temperature 1 no draft from batch 1",
        ),
    ],
)
def test_a_line_says_what_to_use(picks: list[Pick], says: str) -> None:
    assert verdict_of(picks) == says


def test_errors_count_without_their_signs_and_without_plain_decoding() -> None:
    def proof(draft: str | None, error: float) -> Proof:
        return Proof(draft, 0.0, 1, 1, 1, 1.0, Interval(1, 1, 1), error)

    assert median_error([proof("a", -0.04), proof("b", 0.01), proof(None, 0.9), proof("c", 0.02)]) == 0.02
    assert median_error([proof("a", -0.04), proof("b", 0.01)]) == pytest.approx(0.025)
    assert median_error([proof(None, 0.9)]) is None


def test_a_draft_that_may_be_slower_is_no_pick() -> None:
    sample = judgement().drafts[0]
    cells = {cell.k: cell for cell in sample.grid if cell.batch_size == 1}
    unsure = replace(cells[8], predicted=Interval(9.0, 0.9, 20.0))
    sure, small = (replace(cells[k], predicted=Interval(v, v - 0.01, v + 0.01)) for k, v in ((4, 1.5), (2, 1.02)))
    assert [pick.k for pick in picks_of([replace(sample, grid=(unsure, sure, small))])] == [4]
    assert [pick.draft for pick in picks_of([replace(sample, grid=(unsure, small))])] == [None]
