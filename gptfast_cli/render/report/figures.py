"""The figures of the report: which data of the judge each chart shows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Final

from gptfast_cli.core.drafts.report import DraftReport, DraftResult, GridCell, PositionAcceptance, ValidationRun
from gptfast_cli.render.charts.bars import Bar, heat_map, waterfall
from gptfast_cli.render.charts.plots import (
    BOTTOM,
    LEFT,
    RIGHT,
    TOP,
    Curve,
    DotGroup,
    DotRow,
    Line,
    Point,
    ScatterPoint,
    dot_chart,
    line_chart,
    point_labels,
    scatter,
)
from gptfast_cli.render.charts.svg import Axis, Scale, interval_text, round_axis
from gptfast_cli.render.numbers import duration
from gptfast_cli.render.report.tree import Figure

_SPEEDUP_LEVELS: Final = (1.0, 1.5, 2.0, 3.0, 5.0)  # of the contours
_MAX_K: Final = 16
_ROUNDING: Final = 0.005  # of a speed-up in two decimals
_SLICE_KINDS: Final = {"category": "by category", "context": "by context"}


def draft_figures(draft: DraftResult) -> list[Figure]:
    """Speed-ups by k and batch size, acceptance by position, tokens per round by k; those that were measured."""
    about = f"{draft.draft} at temperature {draft.temperature:g}"
    return [
        *([_speedups(draft, about)] if draft.grid else []),
        *([_acceptance(draft.acceptance_by_position, about)] if draft.acceptance_by_position else []),
        *([_tokens_per_round(draft, about)] if draft.tau else []),
    ]


def _speedups(draft: DraftResult, about: str) -> Figure:
    speedups = [cell.predicted.value for cell in draft.grid]
    note = "Faster than plain decoding everywhere." if min(speedups) >= 1 else ""
    note = "Slower than plain decoding everywhere." if max(speedups) < 1 else note
    label = f"Predicted speed-up of {about}, {min(speedups):.2f} to {max(speedups):.2f}, by k and batch size"
    is_broad = len({cell.k for cell in draft.grid}) > 8
    return Figure("Speed-up", heat_map(label, draft.grid), (note,) if note else (), is_broad=is_broad)


def _acceptance(places: tuple[PositionAcceptance, ...], about: str) -> Figure:
    conditional = tuple(
        Point(n, place.conditional, place.conditional, place.conditional)
        for n, place in enumerate(places, start=1)
        if place.conditional is not None
    )
    unconditional = tuple(
        Point(n, place.unconditional, place.unconditional, place.unconditional)
        for n, place in enumerate(places, start=1)
    )
    never = [n for n, place in enumerate(places, start=1) if place.conditional is None]
    chart = line_chart(
        f"Acceptance of {about} by position: the first token {places[0].unconditional:.2f}, the last "
        f"{places[-1].unconditional:.2f} of all rounds",
        (Line("if all before were", conditional), Line("of all rounds", unconditional, "second")),
        x_label="position in the round",
        y_label="",
        y_values=(0.0, 1.0),
    )
    notes = [f"Never reached: position {never[0]}{' and after' if len(never) > 1 else ''}."] if never else []
    return Figure("Accepted, by position", chart, tuple(notes))


def _tokens_per_round(draft: DraftResult, about: str) -> Figure:
    points = tuple(Point(k, tau.value, tau.low, tau.high) for k, tau in sorted(draft.tau.items()))
    chart = line_chart(
        f"Tokens per round of {about}: {points[0].y:.2f} at k {points[0].x}, {points[-1].y:.2f} at k {points[-1].x}",
        (Line("expected, with 95 % interval", points),),
        x_label="k, tokens drafted in a round",
        y_label="",
        y_values=(1.0,),
    )
    return Figure("τ, tokens per round", chart)


@dataclass(frozen=True, slots=True)
class LossCase:
    """A cell of the grid with all that its speed-up is computed from."""

    draft: DraftResult
    cell: GridCell
    step_seconds: float

    def __str__(self) -> str:
        return (
            f"{self.draft.draft}, k = {self.cell.k}, batch {self.cell.batch_size}, temperature "
            f"{self.draft.temperature:g}"
        )


def loss_figure(case: LossCase) -> Figure:
    """From the ideal speed-up, tau, to the predicted and the measured one."""
    bars = waterfall_bars(case)
    label = f"From an ideal speed-up of {bars[0].end:.2f} down to {bars[-1].end:.2f}: {case}"
    return Figure("From the ideal to the real", waterfall(label, bars, 1.0, "dashed: 1×, plain decoding"))


def best_case(report: DraftReport) -> LossCase | None:
    """The recommendation with the highest predicted speed-up, else the cell with it; None if costs are missing."""
    cases = [
        LossCase(draft, cell, plain.step_seconds)
        for draft in report.drafts
        for cell in draft.grid
        for plain in report.plain
        if (plain.temperature, plain.batch_size) == (draft.temperature, cell.batch_size) and cell.k in draft.tau
    ]
    keys = {(pick.draft, pick.temperature, pick.k, pick.batch_size) for pick in report.recommendations}
    picked = [c for c in cases if (c.draft.draft, c.draft.temperature, c.cell.k, c.cell.batch_size) in keys]
    return max(picked or cases, key=lambda case: case.cell.predicted.value, default=None)


def waterfall_bars(case: LossCase) -> tuple[Bar, ...]:
    """From τ through each part of the round to the predicted speed-up, and the measured one where there is one.

    With drafting free and verification at the cost of one plain step, the speed-up is τ. Each part adds its seconds to
    the round; the speed-up after it is τ · plain step ÷ seconds so far.
    """
    cell, step, tau = case.cell, case.step_seconds, case.draft.tau[case.cell.k]
    bars = [Bar("Ideal", f"τ = {tau.value:.2f} tokens in the time of a step", "ideal", 0.0, tau.value)]
    seconds, speedup = 0.0, tau.value
    for name, part in (
        ("Verifying", cell.cost.verify),
        ("Drafting", cell.cost.draft),
        ("Sampling", cell.cost.sample),
        ("Host", cell.cost.host),
    ):
        seconds += part
        after = tau.value * step / seconds if seconds > 0 else speedup
        bars.append(Bar(name, f"{duration(part)}, {part / step:.2f} steps", "change", speedup, after))
        speedup = after
    predicted = cell.predicted
    if abs(predicted.value - speedup) >= _ROUNDING:  # sequences of a batch that do not yield alike, say
        bars.append(Bar("Other", "not in these parts", "change", speedup, predicted.value))
    bars.append(
        Bar("Predicted", f"[{predicted.low:.2f}, {predicted.high:.2f}]", "reached", 0.0, predicted.value, predicted)
    )
    if (measured := cell.measured) is not None:
        bars.append(
            Bar(
                "Measured",
                f"[{measured.low:.2f}, {measured.high:.2f}] in real runs",
                "measured",
                0.0,
                measured.value,
                measured,
            )
        )
    return tuple(bars)


@dataclass(frozen=True, slots=True)
class ComparedDraft:
    """A draft at its best k for the smallest batch; `cost`: of a drafted token, in plain steps."""

    draft: DraftResult
    best: GridCell
    cost: float
    is_beaten: bool


def compared_figure(temperature: float, found: Sequence[ComparedDraft]) -> Figure:
    """Alpha against the cost of a drafted token, with contours of equal speed-up."""
    x = round_axis("cost of a drafted token, in plain steps", [0.0, *(each.cost for each in found)], LEFT, RIGHT)
    x = replace(x, scale=replace(x.scale, low=-0.05 * x.scale.high))  # room for a point that costs nothing
    y = Axis(Scale(0, 1, BOTTOM, TOP), "α, agreement", (0, 0.2, 0.4, 0.6, 0.8, 1.0), 1)
    labels = point_labels([each.draft.draft for each in found])
    plane = scatter(
        f"Agreement against cost of {len(found)} draft{'' if len(found) == 1 else 's'} at temperature {temperature:g}",
        tuple(_compared_point(label, each) for label, each in zip(labels, found, strict=True)),
        x,
        y,
        contours(x.scale.high),
    )
    return Figure(f"Temperature {temperature:g}", plane)


def contenders(drafts: Sequence[DraftResult], steps: Mapping[tuple[float, int], float]) -> list[ComparedDraft]:
    """The drafts whose costs were measured, the highest speed-up first; `steps`: seconds of a plain step."""
    found = []
    for draft in drafts:
        smallest = min((cell.batch_size for cell in draft.grid), default=0)
        step = steps.get((draft.temperature, smallest))
        if step is None:
            continue
        best = max((c for c in draft.grid if c.batch_size == smallest), key=lambda cell: cell.predicted.value)
        found.append((draft, best, best.cost.draft / best.k / step))
    ranked = sorted(found, key=lambda each: -each[1].predicted.value)
    return [ComparedDraft(j, b, c, is_beaten=any(_beats(o, (j, b, c)) for o in found)) for j, b, c in ranked]


def _beats(one: tuple[DraftResult, GridCell, float], other: tuple[DraftResult, GridCell, float]) -> bool:
    (a, _, a_cost), (b, _, b_cost) = one, other
    is_no_worse = a_cost <= b_cost and a.alpha.value >= b.alpha.value
    return is_no_worse and (a_cost < b_cost or a.alpha.value > b.alpha.value)


def contours(highest_cost: float, n_points: int = 60) -> tuple[Curve, ...]:
    """Curves of equal speed-up at the best k, with a round of one plain step and k · cost."""
    curves = []
    for level in _SPEEDUP_LEVELS:
        costs = [highest_cost * n / (n_points - 1) for n in range(n_points)]
        points = [(cost, alpha) for cost in costs if (alpha := _alpha_for(level, cost)) is not None]
        if len(points) > 1:
            curves.append(Curve(f"{level:g}×", tuple(points)))
    return tuple(curves)


def _alpha_for(level: float, cost: float) -> float | None:
    """The alpha that gives a speed-up at a cost, by bisection; None if alpha 1 does not."""
    if _speedup(1.0, cost) < level:
        return None
    low, high = 0.0, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (low, middle) if _speedup(middle, cost) >= level else (middle, high)
    return high


def _speedup(alpha: float, cost: float) -> float:
    n_tokens = list(accumulate(alpha**n for n in range(_MAX_K + 1)))  # of a round, by k
    return max(n_tokens[k] / (1 + k * cost) for k in range(1, _MAX_K + 1))


def _compared_point(label: str, each: ComparedDraft) -> ScatterPoint:
    alpha, speedup = each.draft.alpha, each.best.predicted
    costs = f"a token costs {each.cost:.2f} steps"
    tooltip = f"{each.draft.draft}: alpha {interval_text(alpha)}, {costs}, best {interval_text(speedup, '×')}"
    radius = min(4 + 3 * max(speedup.value - 0.5, 0), 14)
    return ScatterPoint(label, tooltip, each.cost, alpha.value, alpha.low, alpha.high, radius, each.is_beaten)


def validation_figure(runs: Sequence[ValidationRun]) -> Figure:
    """Measured against predicted speed-ups; on the diagonal both are equal."""
    values = [1.0, *(each for p in runs for each in (p.predicted, p.measured.value, p.measured.low, p.measured.high))]
    x = round_axis("predicted", values, LEFT, RIGHT)
    y = round_axis("measured", values, BOTTOM, TOP)
    ends = (x.scale.low, x.scale.high)
    plane = scatter(
        f"Measured against predicted speed-up of {len(runs)} runs",
        tuple(_run_point(label, run) for label, run in zip(point_labels(run_names(runs)), runs, strict=True)),
        x,
        y,
        (Curve("", tuple((end, end) for end in ends), "diagonal"),),
    )
    return Figure("On the line a prediction is right", plane)


def run_names(runs: Sequence[ValidationRun]) -> list[str]:
    """What the figure calls each run."""
    return [_run_name(run) for run in runs]


def _run_name(run: ValidationRun) -> str:
    return "plain" if run.draft is None else f"{run.draft}, k {run.k}"


def _run_point(label: str, run: ValidationRun) -> ScatterPoint:
    measured = run.measured
    about = f"{_run_name(run)}, batch {run.batch_size}"
    tooltip = f"{about}: predicted {run.predicted:.2f}, measured {interval_text(measured)}"
    return ScatterPoint(
        label, tooltip, run.predicted, measured.value, measured.low, measured.high, is_hollow=run.draft is None
    )


def slice_figure(draft: DraftResult) -> Figure:
    """Alpha of each part of the texts, with a dashed line at alpha over all."""
    groups = tuple(
        DotGroup(
            kind_name, tuple(DotRow(s.name, s.alpha, f"{s.n_tokens:,} tokens") for s in draft.slices if s.kind == kind)
        )
        for kind, kind_name in _SLICE_KINDS.items()
        if any(s.kind == kind for s in draft.slices)
    )
    about = f"{draft.draft}, temperature {draft.temperature:g}"
    chart = dot_chart(
        f"Agreement of {about} by part of the texts", groups, draft.alpha, f"all: {draft.alpha.value:.2f}"
    )
    return Figure(about, chart)
