"""A judgement of drafts for a person at a terminal, within 80 columns: the verdict first, the machine last."""

import re
from collections.abc import Iterator
from functools import partial
from typing import Final, TextIO

from gptfast_cli.core.drafts.report import DraftReport
from gptfast_cli.render.judgement_look import ReportStyle
from gptfast_cli.render.judgement_sections import (
    Section,
    draft_names,
    measurement_line,
    sections,
)
from gptfast_cli.render.machine import machine_line
from gptfast_cli.render.tables import Table, aligned, bar, folded, shows_blocks, wrapped
from gptfast_cli.render.terminal import styled

_BOLD, _DIM = "1", "2"
_NAME_COLUMNS = 24
_BAR_COLUMNS = 8
_BEST_OR_LOSS: Final = re.compile(r"[\d.]+\*|\([\d.]+\)\*?")


def write_judgement(judgement: DraftReport, stream: TextIO) -> None:
    """Write it; without escapes where the stream is no terminal."""
    for sentence in judgement.verdict.split("\n"):
        stream.write("".join(styled(line, _BOLD, stream) + "\n" for line in wrapped(sentence)))
    look = ReportStyle(
        names=draft_names(judgement, _NAME_COLUMNS),
        quote=str,
        escape=str,
        best="{}*",
        loss="({})",
        other="{} ",  # the place of a mark
        bar=partial(bar, width=_BAR_COLUMNS, blocks=shows_blocks(stream)),
        is_detailed=False,
    )
    for section in sections(judgement, look):
        stream.write("".join(f"{line}\n" for line in ("", *_section(section, stream))))
    stream.write("\n")
    for line in (*wrapped(machine_line(judgement.environment)), *wrapped(measurement_line(judgement))):
        stream.write(styled(line, _DIM, stream) + "\n")
    stream.flush()


def _section(section: Section, stream: TextIO) -> Iterator[str]:
    yield from (styled(line, _BOLD, stream) for line in wrapped(section.title))
    yield from _sentences(section.opening, stream)
    for n, table in enumerate(section.tables):
        if n:
            yield ""
        yield from _table(table, stream)
    yield from _sentences(section.remarks, stream)


def _sentences(sentences: tuple[str, ...], stream: TextIO) -> Iterator[str]:
    for sentence in sentences:
        yield from (styled(line, _DIM, stream) for line in wrapped(sentence))


def _table(table: Table, stream: TextIO) -> Iterator[str]:
    for n, piece in enumerate(folded(table)):
        if n:
            yield ""
        heading, *rows = aligned(piece)
        yield styled(heading, _DIM, stream)
        # after aligning, for escapes have no width
        yield from (_BEST_OR_LOSS.sub(lambda cell: _marked(cell[0], stream), row) for row in rows)


def _marked(cell: str, stream: TextIO) -> str:
    return styled(cell, _BOLD if cell.endswith("*") else _DIM, stream)
