"""The best draft and depth for each temperature and batch size."""

from gptfast_cli.core.measure.drafts.judgement import Judgement, Pick
from gptfast_cli.render.intervals import shown
from gptfast_cli.render.markup import Child, Element, tag
from gptfast_cli.render.report.tables import paragraph, section, table


def picks(judgement: Judgement) -> Element:
    """One table, a row for each batch size at each temperature."""
    if not judgement.picks:
        return section("picks", "Best picks", paragraph("Nothing was reached to pick from."))
    return section(
        "picks",
        "Best picks",
        paragraph(
            "Predicted speed-up over plain decoding of the same target on this machine; 95\N{NO-BREAK SPACE}% interval."
        ),
        table(
            "The best draft and depth by temperature and batch size",
            ("Temperature", "Batch", "Draft", "k", "Speed-up"),
            [_row(pick) for pick in judgement.picks],
            texts=(2,),
        ),
    )


def _row(pick: Pick) -> tuple[Child, ...]:
    where = (f"{pick.temperature:g}", str(pick.batch_size))
    if pick.draft is None or pick.k is None:
        return (*where, tag("span", "none: plain decoding is fastest", class_="soft"), "\N{EN DASH}", shown(None))
    return (*where, tag("span", pick.draft, class_="name"), str(pick.k), shown(pick.speedup, "×"))
