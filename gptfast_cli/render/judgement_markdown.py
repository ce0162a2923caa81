"""A judgement of drafts as a document in GitHub's Markdown: the same sections as on a terminal, with more columns."""

from typing import TextIO

from gptfast_cli.core.drafts.report import DraftReport
from gptfast_cli.render.judgement_look import ReportStyle
from gptfast_cli.render.judgement_sections import draft_names, measurement_line, sections
from gptfast_cli.render.machine import machine_line
from gptfast_cli.render.tables import code, escaped, markdown_lines, one_line

_NAME_COLUMNS = 40


def write_markdown(judgement: DraftReport, command: str, stream: TextIO) -> None:
    """Write verdict, tables, and once, below them all, by what command, where and how they were measured."""
    look = ReportStyle(
        names=draft_names(judgement, _NAME_COLUMNS),
        quote=code,
        escape=escaped,
        best="**{}**",
        loss="({})",
        other="{}",
        bar=None,
        is_detailed=True,
    )
    paragraphs = [f"**{escaped(one_line(line))}**" for line in judgement.verdict.split("\n")]
    for section in sections(judgement, look):
        paragraphs += [f"### {section.title}", *section.opening]
        paragraphs += ["\n".join(markdown_lines(table)) for table in section.tables]
        paragraphs += section.remarks
    about = f"{machine_line(judgement.environment)}; {measurement_line(judgement)}"
    paragraphs.append(f"{code(one_line(command))}: {about}")
    stream.write("\n\n".join(paragraphs) + "\n")
    stream.flush()
