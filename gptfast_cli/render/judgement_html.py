"""The judgement of drafts as one HTML file that needs nothing beside it: no script, no font, no network."""

from importlib.resources import files
from typing import Final, TextIO

from gptfast_cli.core.drafts.report import DraftReport
from gptfast_cli.render.markup import Element, tag
from gptfast_cli.render.report.compared import compared
from gptfast_cli.render.report.costs import costs, plain
from gptfast_cli.render.report.drafts import drafts
from gptfast_cli.render.report.glossary import glossary
from gptfast_cli.render.report.losses import losses
from gptfast_cli.render.report.picks import picks
from gptfast_cli.render.report.proofs import certificates, proofs
from gptfast_cli.render.report.slices import slices
from gptfast_cli.render.report.temperatures import chooser, chooser_rules, temperatures
from gptfast_cli.render.report.verdict import about, failed, head

_STYLE: Final = "style.css"


def write_html(judgement: DraftReport, command: str, stream: TextIO) -> None:
    """Write the report; `command` is the line that made it. The stream is to encode as UTF-8."""
    choices = temperatures(judgement)
    style = files("gptfast_cli.render.report").joinpath(_STYLE).read_text("utf-8")
    document = tag(
        "html",
        tag(
            "head",
            tag("meta", charset="utf-8"),
            tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
            tag("meta", name="color-scheme", content="light dark"),
            tag("title", f"Drafts for {judgement.target}"),
            tag("style", style + chooser_rules(choices)),
        ),
        tag("body", tag("main", *_parts(judgement, command, choices))),
        lang="en",
    )
    stream.write(f"<!doctype html>\n{document}")
    stream.flush()


def _parts(judgement: DraftReport, command: str, choices: list[float]) -> list[Element]:
    """In the order of the questions: what to use, where it holds, why, how sure, at which cost, in which words."""
    parts = (
        head(judgement),
        about(judgement, command),
        picks(judgement),
        chooser(choices) if judgement.drafts else None,
        drafts(judgement, choices),
        losses(judgement),
        compared(judgement, choices),
        proofs(judgement),
        slices(judgement, choices),
        costs(judgement, choices),
        plain(judgement),
        certificates(judgement),
        failed(judgement),
        glossary(),
    )
    return [part for part in parts if part is not None]
