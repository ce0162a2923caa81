"""Where the speed-up goes, which drafts are beaten, and scales and names that fit."""

import math
from dataclasses import replace

import pytest
from report_cases import cases

from gptfast_cli.core.drafts.report import Interval, RoundCost
from gptfast_cli.render.charts.plots import point_labels
from gptfast_cli.render.charts.svg import Box, place_labels, round_axis
from gptfast_cli.render.report.figures import LossCase, best_case, contenders, contours, waterfall_bars
from sample_report import sample_report


def case() -> LossCase:
    found = best_case(sample_report())
    assert found is not None
    return found


def test_the_best_pick_is_taken_apart() -> None:
    found = case()
    best = max(sample_report().recommendations, key=lambda pick: pick.speedup.value if pick.speedup else 0)
    assert (found.draft.draft, found.draft.temperature) == (best.draft, best.temperature)
    assert (found.cell.k, found.cell.batch_size) == (best.k, best.batch_size)


def test_the_parts_lead_from_the_ideal_to_the_predicted_speed_up() -> None:
    found = case()
    bars = waterfall_bars(found)
    ideal, *parts, predicted = bars
    assert ideal.end == found.draft.tau[found.cell.k].value
    assert [bar.name for bar in parts] == ["Verifying", "Drafting", "Sampling", "Host"]
    at = ideal.end
    for bar in parts:
        assert bar.start == at
        at = bar.end
    assert math.isclose(at, predicted.end)
    assert math.isclose(ideal.end + sum(bar.end - bar.start for bar in parts), found.cell.predicted.value)


def test_a_part_that_costs_twice_as_much_takes_more() -> None:
    found = case()
    cost = replace(found.cell.cost, draft=2 * found.cell.cost.draft)
    taken = [bar.start - bar.end for bar in waterfall_bars(found) if bar.name == "Drafting"]
    dearer = LossCase(found.draft, replace(found.cell, cost=cost), found.step_seconds)
    assert [bar.start - bar.end for bar in waterfall_bars(dearer) if bar.name == "Drafting"] > taken


def test_a_verification_of_one_step_and_nothing_else_loses_nothing() -> None:
    found = case()
    free = replace(
        found.cell, cost=RoundCost(0.0, found.step_seconds, 0.0, 0.0), predicted=found.draft.tau[found.cell.k]
    )
    bars = waterfall_bars(LossCase(found.draft, free, found.step_seconds))
    assert all(math.isclose(bar.start, bar.end) for bar in bars if bar.kind == "change")


def test_what_the_parts_do_not_explain_is_shown_as_such_and_the_measured_last() -> None:
    found = case()
    real = Interval(2.0, 1.9, 2.1)
    cell = replace(found.cell, predicted=Interval(2.2, 2.1, 2.3), measured=real)
    *_, other, predicted, measured = waterfall_bars(LossCase(found.draft, cell, found.step_seconds))
    assert (other.name, other.end) == ("Other", 2.2)
    assert (predicted.end, measured.end, measured.interval) == (2.2, 2.0, real)


@pytest.mark.parametrize("name", ["nothing reached", "plain reached", "no costs reached", "nothing but alpha"])
def test_nothing_is_taken_apart_where_nothing_was_measured(name: str) -> None:
    assert best_case(cases()[name]) is None


def test_a_draft_that_is_dearer_and_agrees_less_is_beaten() -> None:
    first, second = sample_report().drafts[:2]
    steps = {(0.0, 1): 0.0102}
    worse = replace(second, alpha=replace(first.alpha, value=first.alpha.value - 0.01))
    assert [each.is_beaten for each in contenders([first, worse], steps)] == [False, True]
    assert [each.is_beaten for each in contenders([first, second], steps)] == [False, False]
    assert math.isclose(contenders([first], steps)[0].cost, 0.1)


def test_a_curve_of_equal_speed_up_is_right_at_no_cost_and_at_one_depth() -> None:
    by_name = {curve.name: dict(curve.points) for curve in contours(0.5)}
    assert math.isclose(by_name["2×"][0.0], 0.5, abs_tol=1e-4)  # 1 + a + a² + ... = 2
    assert math.isclose(by_name["1×"][0.5], 0.5, abs_tol=1e-4)  # one token: (1 + a) / 1.5 = 1


def test_a_scale_holds_its_values_between_round_numbers() -> None:
    axis = round_axis("", [0.97, 2.41], 0, 100)
    assert axis.ticks == (0.5, 1.0, 1.5, 2.0, 2.5) and axis.decimals == 1
    assert axis.scale(0.5) == 0 and axis.scale(2.5) == 100 and math.isclose(axis.scale(1.0), 25)
    assert round_axis("", [1.0], 0, 100).ticks[0] < 1.0 < round_axis("", [1.0], 0, 100).ticks[-1]


def test_names_cover_neither_points_nor_one_another_and_stay_on_the_sheet() -> None:
    sheet = Box(0, 0, 300, 200)
    points = [Box(x, y, x + 8, y + 8) for x, y in ((10, 10), (14, 20), (150, 100), (152, 103), (290, 190))]
    boxes = place_labels(["a-name"] * 5, points, sheet)
    found = [box for box in boxes if box is not None]
    assert len(found) >= 4
    for n, box in enumerate(found):
        assert sheet.contains(box)
        assert not any(box.overlaps(other) for other in (*points, *found[n + 1 :]))


def test_long_or_many_names_are_reported_by_number() -> None:
    assert point_labels(["one", "two"]) == ["one", "two"]
    assert point_labels(["one", "t" * 30]) == ["1", "2"]
    assert point_labels(["one"] * 9) == [str(n) for n in range(1, 10)]
