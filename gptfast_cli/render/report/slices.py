"""Agreement by the kind of text and by the length of the context."""

from collections.abc import Sequence

from gptfast_cli.core.drafts.report import DraftReport, DraftResult
from gptfast_cli.render.charts.scatter import DotGroup, DotRow, dot_chart
from gptfast_cli.render.markup import Element, tag
from gptfast_cli.render.report.tables import figure, paragraph, section
from gptfast_cli.render.report.temperatures import at_temperature

_KINDS = {"category": "by category", "context": "by context"}


def slices(judgement: DraftReport, choices: Sequence[float]) -> Element | None:
    """A chart for each draft and temperature."""
    charts = [
        at_temperature(choices, judged.temperature, [_chart(judged)]) for judged in judgement.drafts if judged.slices
    ]
    if not charts:
        return None
    return section(
        "slices",
        "Agreement by kind of text",
        paragraph(
            "α over parts of the texts, with 95\N{NO-BREAK SPACE}% intervals; the dashed line is α over all of them."
        ),
        tag("div", *charts, class_="figures"),
    )


def _chart(judged: DraftResult) -> Element:
    groups = tuple(
        DotGroup(
            words, tuple(DotRow(s.name, s.alpha, f"{s.n_tokens:,} tokens") for s in judged.slices if s.kind == kind)
        )
        for kind, words in _KINDS.items()
        if any(s.kind == kind for s in judged.slices)
    )
    about = f"{judged.draft}, temperature {judged.temperature:g}"
    chart = dot_chart(
        f"Agreement of {about} by part of the texts", groups, judged.alpha, f"all: {judged.alpha.value:.2f}"
    )
    return figure(about, chart)
