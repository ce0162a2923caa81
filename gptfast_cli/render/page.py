"""A page of 80 columns: sentences wrapped to it, and tables whose columns are folded where they do not fit."""

import textwrap
from collections.abc import Iterator
from typing import Final

from gptfast_cli.render.table import GAP, Table, column_widths
from gptfast_cli.render.terminal import printable

COLUMNS: Final = 80


def wrapped(sentence: str, indent: str = "") -> list[str]:
    """The lines of a sentence; a word that is longer than a line is broken."""
    return textwrap.wrap(
        printable(sentence), COLUMNS, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False
    )


def folded(table: Table) -> Iterator[Table]:
    """The table in as many pieces as the page needs, each with the columns that name a row and some of the others."""
    widths = [len(GAP) + width for width in column_widths(table)]
    names = list(range(table.n_names))
    room = COLUMNS + len(GAP) - sum(widths[: table.n_names])
    piece: list[int] = []
    for column in range(table.n_names, len(widths)):
        if piece and sum(widths[n] for n in piece) + widths[column] > room:
            yield table.only(names + piece)
            piece = []
        piece.append(column)
    yield table.only(names + piece)
