"""Each draft at each temperature: where it pays, how often its tokens are accepted, and how many a round yields."""

from collections.abc import Sequence

from gptfast_cli.core.drafts.report import DraftReport, DraftResult, PositionAcceptance
from gptfast_cli.render.charts.canvas import legend
from gptfast_cli.render.charts.heat_map import heat_map
from gptfast_cli.render.charts.lines import Line, Point, line_chart
from gptfast_cli.render.intervals import shown
from gptfast_cli.render.markup import Child, Element, tag
from gptfast_cli.render.report.tables import figure, paragraph, section
from gptfast_cli.render.report.temperatures import at_temperature

_N_OPEN = 4  # more than so many drafts are folded up


def drafts(judgement: DraftReport, choices: Sequence[float]) -> Element:
    """A card for each; a folded one shows its figures in short."""
    if not judgement.drafts:
        return section("drafts", "Draft by draft", paragraph("No draft was reached."))
    names = {each.draft for each in judgement.drafts}
    picked = {pick.draft for pick in judgement.recommendations}
    return section(
        "drafts",
        "Draft by draft",
        paragraph(
            "Predicted speed-up by depth k and batch size, blue where speculation is faster than plain decoding and "
            "orange where it is slower; the heavy line between them is where it breaks even. A framed cell was run for "
            "real, with the measured speed-up in bold below the predicted one."
        ),
        tag("div", legend(), class_="scroll legend"),
        *(
            at_temperature(
                choices, each.temperature, [_card(each, is_open=len(names) <= _N_OPEN or each.draft in picked)]
            )
            for each in judgement.drafts
        ),
    )


def _card(judged: DraftResult, *, is_open: bool) -> Element:
    about = f"{judged.draft} at temperature {judged.temperature:g}"
    return tag(
        "details",
        tag("summary", *_summary(judged)),
        tag(
            "div",
            _grid(judged, about) if judged.grid else paragraph("Its costs were not reached.", class_="note"),
            _acceptance(judged.acceptance_by_position, about) if judged.acceptance_by_position else None,
            _tokens_per_round(judged, about) if judged.tau else None,
            class_="figures",
        ),
        class_="card",
        open="" if is_open else None,
    )


def _summary(judged: DraftResult) -> list[Child]:
    best = max(judged.grid, key=lambda cell: cell.predicted.value, default=None)
    best_words: list[Child] = []
    if best is not None:
        best_words = [tag("span", "best ", shown(best.predicted, "×"), f" at k {best.k}, batch {best.batch_size}")]
    return [
        tag(
            "h3",
            tag("span", judged.draft, class_="name"),
            tag("span", f" temperature {judged.temperature:g}", class_="soft"),
        ),
        tag("span", "α ", shown(judged.alpha)),
        *best_words,
        tag("span", f"{judged.n_tokens:,} tokens", class_="soft"),
        tag("span", judged.basis, class_=f"basis {judged.basis}"),
    ]


def _grid(judged: DraftResult, about: str) -> Element:
    speedups = [cell.predicted.value for cell in judged.grid]
    note = "Faster than plain decoding everywhere." if min(speedups) >= 1 else ""
    note = "Slower than plain decoding everywhere." if max(speedups) < 1 else note
    label = f"Predicted speed-up of {about}, {min(speedups):.2f} to {max(speedups):.2f}, by k and batch size"
    is_broad = len({cell.k for cell in judged.grid}) > 8
    return figure("Speed-up", heat_map(label, judged.grid), *([note] if note else []), is_broad=is_broad)


def _acceptance(places: tuple[PositionAcceptance, ...], about: str) -> Element:
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
    return figure("Accepted, by position", chart, *notes)


def _tokens_per_round(judged: DraftResult, about: str) -> Element:
    points = tuple(Point(k, tau.value, tau.low, tau.high) for k, tau in sorted(judged.tau.items()))
    chart = line_chart(
        f"Tokens per round of {about}: {points[0].y:.2f} at k {points[0].x}, {points[-1].y:.2f} at k {points[-1].x}",
        (Line("expected, with 95 % interval", points),),
        x_label="k, tokens drafted in a round",
        y_label="",
        y_values=(1.0,),
    )
    return figure("τ, tokens per round", chart)
