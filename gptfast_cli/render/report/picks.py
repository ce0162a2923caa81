"""The best draft and depth for each temperature and batch size."""

from gptfast_cli.core.drafts.report import DraftReport, Recommendation
from gptfast_cli.render.intervals import shown
from gptfast_cli.render.markup import Child, Element, tag
from gptfast_cli.render.report.tables import paragraph, section, table


def picks(judgement: DraftReport) -> Element:
    """One table, a row for each batch size at each temperature."""
    if not judgement.recommendations:
        return section("picks", "Best picks", paragraph("Nothing was reached to pick from."))
    return section(
        "picks",
        "Best picks",
        paragraph(
            "Predicted speed-up over plain decoding of the same target on this machine; 95\N{NO-BREAK SPACE}% interval."
        ),
        table(
            "The best draft and depth by temperature and batch size",
            ("Temperature", "Batch", "k", "Speed-up", "Draft"),
            [_row(pick) for pick in judgement.recommendations],
            texts=(4,),
        ),
    )


def _row(pick: Recommendation) -> tuple[Child, ...]:
    where = (f"{pick.temperature:g}", str(pick.batch_size))
    if pick.draft is None or pick.k is None:
        why = "no clear gain" if pick.is_unclear else "none: plain decoding is fastest"
        return (*where, "\N{EN DASH}", shown(None), tag("span", why, class_="soft"))
    return (*where, str(pick.k), shown(pick.speedup, "×"), tag("span", pick.draft, class_="name"))
