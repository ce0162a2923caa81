"""The drafts against one another: what a drafted token costs, and how well it agrees."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from gptfast_cli.core.drafts.report import DraftReport, DraftResult, GridCell
from gptfast_cli.render.charts.canvas import Axis, Scale, round_axis
from gptfast_cli.render.charts.scatter import (
    BOTTOM,
    LEFT,
    RIGHT,
    TOP,
    Curve,
    ScatterPoint,
    keys,
    scatter,
)
from gptfast_cli.render.intervals import shown, spoken
from gptfast_cli.render.markup import Child, Element, tag
from gptfast_cli.render.report.tables import (
    figure,
    numbered,
    paragraph,
    section,
    table,
)
from gptfast_cli.render.report.temperatures import at_temperature

_LEVELS: Final = (1.0, 1.5, 2.0, 3.0, 5.0)
_DEEPEST: Final = 16


@dataclass(frozen=True, slots=True)
class ComparedDraft:
    """A draft at a temperature, at its best depth for the smallest batch; `cost` is in plain steps."""

    judged: DraftResult
    best: GridCell
    cost: float
    is_beaten: bool


def compared(judgement: DraftReport, choices: Sequence[float]) -> Element | None:
    """A plane for each temperature, with a table beside it."""
    steps = {(plain.temperature, plain.batch_size): plain.step_seconds for plain in judgement.plain}
    by_temperature = [(t, contenders([d for d in judgement.drafts if d.temperature == t], steps)) for t in choices]
    panels = [
        at_temperature(choices, temperature, _panel(temperature, each), "pair")
        for temperature, each in by_temperature
        if each
    ]
    if not panels:
        return None
    return section(
        "compared",
        "Drafts compared",
        paragraph(
            "Up is better agreement, left is a cheaper token; the larger a point, the higher its best speed-up at the "
            "smallest batch. Filled points are beaten by no other draft in both. Grey curves: the best speed-up over k "
            "if verifying cost one plain step."
        ),
        *panels,
    )


def contenders(drafts: Sequence[DraftResult], steps: Mapping[tuple[float, int], float]) -> list[ComparedDraft]:
    """Those whose costs are known, the fastest first."""
    found = []
    for judged in drafts:
        smallest = min((cell.batch_size for cell in judged.grid), default=0)
        step = steps.get((judged.temperature, smallest))
        if step is None:
            continue
        best = max((c for c in judged.grid if c.batch_size == smallest), key=lambda cell: cell.predicted.value)
        found.append((judged, best, best.cost.draft / best.k / step))
    ranked = sorted(found, key=lambda each: -each[1].predicted.value)
    return [ComparedDraft(j, b, c, is_beaten=any(_beats(o, (j, b, c)) for o in found)) for j, b, c in ranked]


def _beats(one: tuple[DraftResult, GridCell, float], other: tuple[DraftResult, GridCell, float]) -> bool:
    (a, _, a_cost), (b, _, b_cost) = one, other
    is_no_worse = a_cost <= b_cost and a.alpha.value >= b.alpha.value
    return is_no_worse and (a_cost < b_cost or a.alpha.value > b.alpha.value)


def _panel(temperature: float, found: list[ComparedDraft]) -> list[Element]:
    x = round_axis("cost of a drafted token, in plain steps", [0.0, *(each.cost for each in found)], LEFT, RIGHT)
    x = replace(x, scale=replace(x.scale, low=-0.05 * x.scale.high))  # room for a point that costs nothing
    y = Axis(Scale(0, 1, BOTTOM, TOP), "α, agreement", (0, 0.2, 0.4, 0.6, 0.8, 1.0), 1)
    names = keys([each.judged.draft for each in found])
    is_numbered = names != [each.judged.draft for each in found]
    plane = scatter(
        f"Agreement against cost of {len(found)} draft{'' if len(found) == 1 else 's'} at temperature {temperature:g}",
        tuple(_spot(key, each) for key, each in zip(names, found, strict=True)),
        x,
        y,
        contours(x.scale.high),
    )
    return [
        figure(f"Temperature {temperature:g}", plane),
        table(
            f"Drafts compared at temperature {temperature:g}",
            ("Draft", "α", "Token cost", "Best speed-up", "k", "Batch"),
            [_row(n if is_numbered else None, each) for n, each in enumerate(found, start=1)],
        ),
    ]


def contours(highest_cost: float, n_points: int = 60) -> tuple[Curve, ...]:
    """Where agreement and cost give the same speed-up: a step of verifying and k · cost of drafting, at the best k."""
    curves = []
    for level in _LEVELS:
        costs = [highest_cost * n / (n_points - 1) for n in range(n_points)]
        points = [(cost, alpha) for cost in costs if (alpha := _needed(level, cost)) is not None]
        if len(points) > 1:
            curves.append(Curve(f"{level:g}×", tuple(points)))
    return tuple(curves)


def _needed(level: float, cost: float) -> float | None:
    """The agreement that gives a speed-up at a cost, by halving; None where even perfect agreement does not."""
    if _ideal(1.0, cost) < level:
        return None
    low, high = 0.0, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (low, middle) if _ideal(middle, cost) >= level else (middle, high)
    return high


def _ideal(alpha: float, cost: float) -> float:
    return max(sum(alpha**n for n in range(k + 1)) / (1 + k * cost) for k in range(1, _DEEPEST + 1))


def _spot(name: str, each: ComparedDraft) -> ScatterPoint:
    speedup = each.best.predicted
    alpha = each.judged.alpha
    told = (
        f"{each.judged.draft}: alpha {spoken(alpha)}, a token costs {each.cost:.2f} steps, best {spoken(speedup, '×')}"
    )
    radius = min(4 + 3 * max(speedup.value - 0.5, 0), 14)
    return ScatterPoint(name, told, each.cost, alpha.value, alpha.low, alpha.high, radius, each.is_beaten)


def _row(number: int | None, each: ComparedDraft) -> tuple[Child, ...]:
    return (
        numbered(number, tag("span", each.judged.draft, class_="name")),
        shown(each.judged.alpha),
        f"{each.cost:.3f}",
        shown(each.best.predicted, "×"),
        str(each.best.k),
        str(each.best.batch_size),
    )
