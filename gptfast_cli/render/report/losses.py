"""What is lost between the ideal and the real: the best pick's speed-up, taken down part by part of its round.

With a draft that costs nothing and a verification that costs no more than one plain step, a round would yield τ tokens
in the time of one: a speed-up of τ. Every part adds its seconds to the round, and τ · step ÷ seconds is what is left.
"""

from dataclasses import dataclass

from gptfast_cli.core.drafts.report import DraftReport, DraftResult, GridCell
from gptfast_cli.render.charts.waterfall import Bar, waterfall
from gptfast_cli.render.markup import Element, tag
from gptfast_cli.render.numbers import duration
from gptfast_cli.render.report.tables import figure, paragraph, section

_SEEN = 0.005  # of a speed-up that is shown in hundredths


@dataclass(frozen=True, slots=True)
class LossCase:
    """A cell with all that its speed-up is made of."""

    judged: DraftResult
    cell: GridCell
    step_seconds: float


def losses(judgement: DraftReport) -> Element | None:
    """The waterfall of the best pick, or of the best that there is where none is faster than plain decoding."""
    case = best_case(judgement)
    if case is None:
        return None
    name = (
        f"{case.judged.draft}, k = {case.cell.k}, batch {case.cell.batch_size}, temperature {case.judged.temperature:g}"
    )
    is_picked = any(pick.draft is not None for pick in judgement.recommendations)
    bars = waterfall_bars(case)
    label = f"From an ideal speed-up of {bars[0].end:.2f} down to {bars[-1].end:.2f}: {name}"
    return section(
        "losses",
        "Where the speed-up goes",
        paragraph(
            "The best pick, " if is_picked else "No draft was picked; the one nearest to it, ",
            tag("span", name, class_="name"),
            ": were drafting free and verifying no dearer than a plain step, each round would gain τ. "
            f"A plain step takes {duration(case.step_seconds)}, a round {duration(case.cell.cost.total)}.",
        ),
        figure("From the ideal to the real", waterfall(label, bars, 1.0, "dashed: 1×, plain decoding")),
    )


def best_case(judgement: DraftReport) -> LossCase | None:
    """The pick that gains most, else the cell that is predicted to; None where a part of it was not measured."""
    cases = [
        LossCase(judged, cell, plain.step_seconds)
        for judged in judgement.drafts
        for cell in judged.grid
        for plain in judgement.plain
        if (plain.temperature, plain.batch_size) == (judged.temperature, cell.batch_size) and cell.k in judged.tau
    ]
    keys = {(pick.draft, pick.temperature, pick.k, pick.batch_size) for pick in judgement.recommendations}
    picked = [c for c in cases if (c.judged.draft, c.judged.temperature, c.cell.k, c.cell.batch_size) in keys]
    return max(picked or cases, key=lambda case: case.cell.predicted.value, default=None)


def waterfall_bars(case: LossCase) -> tuple[Bar, ...]:
    """From τ through each part of the round to the predicted speed-up, and the measured one where there is one."""
    cell, step, tau = case.cell, case.step_seconds, case.judged.tau[case.cell.k]
    bars = [Bar("Ideal", f"τ = {tau.value:.2f} tokens in the time of a step", "ideal", 0.0, tau.value)]
    seconds, reached = 0.0, tau.value
    for name, part in (
        ("Verifying", cell.cost.verify),
        ("Drafting", cell.cost.draft),
        ("Sampling", cell.cost.sample),
        ("Host", cell.cost.host),
    ):
        seconds += part
        after = tau.value * step / seconds if seconds > 0 else reached
        bars.append(Bar(name, f"{duration(part)}, {part / step:.2f} steps", "change", reached, after))
        reached = after
    predicted = cell.predicted
    if abs(predicted.value - reached) >= _SEEN:  # sequences of a batch that do not yield alike, say
        bars.append(Bar("Other", "not in these parts", "change", reached, predicted.value))
    bars.append(
        Bar("Predicted", f"[{predicted.low:.2f}, {predicted.high:.2f}]", "reached", 0.0, predicted.value, predicted)
    )
    if (real := cell.measured) is not None:
        bars.append(
            Bar("Measured", f"[{real.low:.2f}, {real.high:.2f}] in real runs", "measured", 0.0, real.value, real)
        )
    return tuple(bars)
