"""The report as text: for a terminal, within 80 columns, and as a document in GitHub's Markdown."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final, TextIO, TypeAlias

from gptfast_cli.core.drafts.report import DraftReport
from gptfast_cli.render import terminal
from gptfast_cli.render.numbers import digits, duration, machine_line
from gptfast_cli.render.report.content import sections
from gptfast_cli.render.report.tree import (
    MISSING,
    Block,
    Card,
    Cell,
    Column,
    Detail,
    Facts,
    Fold,
    Group,
    Holds,
    Name,
    Paragraph,
    Part,
    Pictured,
    Quoted,
    Ranged,
    Section,
    Share,
    Soft,
    Speedup,
    Table,
    Words,
)
from gptfast_cli.render.terminal import (
    DIM,
    aligned,
    bar,
    code,
    escaped,
    folded,
    markdown_lines,
    one_line,
    short_names,
    shows_blocks,
    styled,
    wrapped,
    write_dim,
)

_BOLD: Final = "1"
_TERMINAL_NAME, _MARKDOWN_NAME = 24, 40  # characters of a draft's name in a table
_BAR_COLUMNS: Final = 8
_BEST_OR_LOSS: Final = re.compile(r"[\d.]+\*|\([\d.]+\)\*?")

_Blocks: TypeAlias = list[str | terminal.Table]
"""Sentences and tables."""


@dataclass(frozen=True, slots=True)
class ReportStyle:
    """How a medium writes names and marks.

    names:  of each draft, its name in a table; quote: a name in a sentence; escape: a sentence that is not ours
    best:   template of a batch size's best speed-up; loss: of one below 1; other: of all others
    bar:    of a share 0..1; None: no bars
    """

    detail: Detail
    names: Mapping[str, str]
    quote: Callable[[str], str]
    escape: Callable[[str], str]
    best: str
    loss: str
    other: str
    bar: Callable[[float], str] | None

    def sentence(self, words: Iterable[Words]) -> str:
        """The text of a paragraph."""
        return "".join(self._word(word) for word in words)

    def table(self, table: Table) -> terminal.Table:
        """The columns that the medium shows, as text."""
        shown = [n for n, column in enumerate(table.columns) if column.since <= self.detail]
        rows = [tuple(self._cell(row[n]) for n in shown if n < len(row)) for row in table.rows]
        headings = (self._heading(table.columns[n], [row[n] for row in table.rows if n < len(row)]) for n in shown)
        sides = "".join("<" if table.columns[n].is_text else ">" for n in shown)
        return terminal.Table(tuple(headings), tuple(rows), sides, table.n_names)

    def _heading(self, column: Column, cells: list[Cell]) -> str:
        """The heading, as wide as the marks or bars of its cells need to line up."""
        if any(isinstance(cell, Speedup) for cell in cells):
            return self.other.format(column.heading)
        if self.bar is not None and any(isinstance(cell, Share) for cell in cells):
            return column.heading.ljust(len(self._cell(Share(0.0))))
        return column.heading

    def _word(self, word: Words) -> str:
        match word:
            case Name(text):
                return self.quote(one_line(text))
            case Quoted(text):
                return self.escape(one_line(text))
            case _:
                return self._cell(word)

    def _cell(self, cell: Cell) -> str:
        match cell:
            case str():
                return cell
            case Name(text):
                return self.quote(self.names[text])
            case Speedup():
                return self._speedup(cell)
            case Ranged():
                value, low, high = cell.texts
                return f"{value} [{low}, {high}]" if cell.since <= self.detail else value
            case _:
                return self._share_or_word(cell)

    def _share_or_word(self, cell: Soft | Share | Part | Holds) -> str:
        match cell:
            case Soft(text):
                return text
            case Share(share):
                text = f"{share:.0%}"
                return text if self.bar is None else f"{text:>4} {self.bar(share)}"
            case Part(seconds, total):
                return f"{seconds / total:.0%}" if total else MISSING
            case Holds(holds):
                return "yes" if holds else "NO"

    def _speedup(self, speedup: Speedup) -> str:
        is_loss = speedup.value < 1 and not speedup.is_measured
        text = self.loss.format(digits(speedup.value)) if is_loss else digits(speedup.value)
        if speedup.is_best:
            return self.best.format(text)
        return text if is_loss else self.other.format(text)


def write_text(report: DraftReport, stream: TextIO) -> None:
    """Write the report for a terminal: the verdict first, the machine last; escapes only where the stream has them."""
    style = ReportStyle(
        Detail.TERMINAL,
        names=_draft_names(report, _TERMINAL_NAME),
        quote=str,
        escape=str,
        best="{}*",
        loss="({})",
        other="{} ",  # the place of a mark
        bar=partial(bar, width=_BAR_COLUMNS, blocks=shows_blocks(stream)),
    )
    for sentence in report.verdict.split("\n"):
        stream.write("".join(styled(line, _BOLD, stream) + "\n" for line in wrapped(sentence)))
    for title, blocks in _titled(report, style):
        stream.write("".join(f"{line}\n" for line in ("", *_terminal_lines(title, blocks, stream))))
    stream.write("\n")
    write_dim(machine_line(report.environment), stream)
    write_dim(_measurement_line(report), stream)
    stream.flush()


def write_markdown(report: DraftReport, command: str, stream: TextIO) -> None:
    """Write the report with all columns of its tables; below them the command, the machine and the measurement."""
    style = ReportStyle(
        Detail.MARKDOWN,
        names=_draft_names(report, _MARKDOWN_NAME),
        quote=code,
        escape=escaped,
        best="**{}**",
        loss="({})",
        other="{}",
        bar=None,
    )
    paragraphs = [f"**{escaped(one_line(line))}**" for line in report.verdict.split("\n")]
    for title, blocks in _titled(report, style):
        paragraphs.append(f"### {title}")
        paragraphs += [each if isinstance(each, str) else "\n".join(markdown_lines(each)) for each in blocks]
    about = f"{machine_line(report.environment)}; {_measurement_line(report)}"
    paragraphs.append(f"{code(one_line(command))}: {about}")
    stream.write("\n\n".join(paragraphs) + "\n")
    stream.flush()


def _titled(report: DraftReport, style: ReportStyle) -> Iterator[tuple[str, _Blocks]]:
    """Title and blocks of each section, a draft's card being a section of its own."""
    for section in sections(report):
        if section.since <= style.detail:
            yield from _section(section, style)


def _section(section: Section, style: ReportStyle) -> Iterator[tuple[str, _Blocks]]:
    cards = [block for block in section.blocks if isinstance(block, Card)]
    blocks = (block for block in section.blocks if not isinstance(block, Card))
    yield section.title, list(_flattened(blocks, style))
    for card in cards:
        name = one_line(card.draft.draft)
        line, *others = _flattened(card.blocks, style)
        short = style.names[card.draft.draft]
        in_tables = [] if short == name else [f"In tables: {style.quote(short)}."]
        yield f"{style.quote(name)} at temperature {card.draft.temperature:g}", [line, *in_tables, *others]


def _flattened(blocks: Iterable[Block], style: ReportStyle) -> Iterator[str | terminal.Table]:
    for block in blocks:
        match block:
            case Paragraph(words):
                yield style.sentence(words)
            case Table():
                yield style.table(block)
            case Facts(items):
                yield from (f"{style.sentence(term)}: {style.sentence(text)}" for term, text in items)
            case Pictured():
                yield from _flattened(block.otherwise, style)
            case Group() | Fold():
                yield from _flattened(block.blocks, style)
            case _:
                raise AssertionError(f"{block.kind} has no text")


def _terminal_lines(title: str, blocks: _Blocks, stream: TextIO) -> Iterator[str]:
    yield from (styled(line, _BOLD, stream) for line in wrapped(title))
    was_table = False
    for block in blocks:
        if isinstance(block, str):
            yield from (styled(line, DIM, stream) for line in wrapped(block))
        else:
            if was_table:
                yield ""
            yield from _table_lines(block, stream)
        was_table = not isinstance(block, str)


def _table_lines(table: terminal.Table, stream: TextIO) -> Iterator[str]:
    for n, piece in enumerate(folded(table)):
        if n:
            yield ""
        heading, *rows = aligned(piece)
        yield styled(heading, DIM, stream)
        # after aligning, for escapes have no width
        yield from (_BEST_OR_LOSS.sub(lambda cell: _marked(cell[0], stream), row) for row in rows)


def _marked(cell: str, stream: TextIO) -> str:
    return styled(cell, _BOLD if cell.endswith("*") else DIM, stream)


def _draft_names(report: DraftReport, width: int) -> dict[str, str]:
    """Every draft in the report, and its name in a table."""
    drafts = [
        *(each.draft for each in report.drafts),
        *(each.draft for each in report.recommendations if each.draft is not None),
        *(each.draft for each in report.validation_runs if each.draft is not None),
        *(each.draft for each in report.losslessness_checks),
    ]
    return short_names(drafts, width)


def _measurement_line(report: DraftReport) -> str:
    prompts = f"{report.n_prompts:,} prompt{'' if report.n_prompts == 1 else 's'}"
    parts = (
        f"{prompts}, {report.max_new_tokens:,} new tokens each at most",
        f"seed {report.seed}",
        f"memory reads {digits(report.bandwidth_gbps)} GB/s",
        f"prefill of a prompt {duration(report.prefill_s)}",
        *(() if report.noise is None else (f"equal runs differ by {report.noise.spread:.0%}",)),
        "[low, high]: 95 of 100 bootstrap samples, by prompt",
    )
    return "; ".join(parts)
