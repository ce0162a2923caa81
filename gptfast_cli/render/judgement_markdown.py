"""A judgement of drafts as a document in GitHub's Markdown: the same sections as on a terminal, with more columns."""

from typing import TextIO

from gptfast_cli.core.measure.drafts.judgement import Judgement
from gptfast_cli.render.judgement_look import Look
from gptfast_cli.render.judgement_sections import draft_names, measurement_line, sections
from gptfast_cli.render.machine import machine_line
from gptfast_cli.render.markdown import code, escaped, markdown_lines
from gptfast_cli.render.names import one_line

_NAME_COLUMNS = 40


def write_markdown(judgement: Judgement, command: str, stream: TextIO) -> None:
    """Write verdict, tables, and once, below them all, by what command, where and how they were measured."""
    look = Look(
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
