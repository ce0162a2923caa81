"""A table as plain text in aligned columns, for a person to read and for `awk` and `column` to take apart."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, TextIO

from gptfast_cli.render.terminal import printable

GAP: Final = "  "


@dataclass(frozen=True, slots=True)
class Table:
    """Headings and rows; a row may be short.

    sides:   of each column, where its texts stand: "<" to the left, ">" to the right
    n_names: columns that say what a row is about
    """

    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    sides: str
    n_names: int = 1

    def only(self, columns: Sequence[int]) -> "Table":
        """The table of some of its columns, without rows that have none of them but a name."""
        rows = [tuple(row[n] for n in columns if n < len(row)) for row in self.rows]
        return Table(
            headings=tuple(self.headings[n] for n in columns),
            rows=tuple(row for row in rows if any(row[self.n_names :])),
            sides="".join(self.sides[n] for n in columns),
            n_names=self.n_names,
        )


def aligned(table: Table) -> Iterator[str]:
    """Its lines, the heading first."""
    widths = column_widths(table)
    for row in (table.headings, *table.rows):
        cells = zip(row, table.sides, widths, strict=False)
        yield GAP.join(f"{text:{side}{width}}" for text, side, width in cells).rstrip()


def column_widths(table: Table) -> list[int]:
    """Characters of the longest text of each column."""
    texts = (table.headings, *table.rows)
    return [max(len(row[n]) for row in texts if n < len(row)) for n in range(len(table.headings))]


def write_table(rows: Sequence[Sequence[str]], stream: TextIO) -> None:
    """Write rows of equally many cells, the heading first."""
    headings, *others = [tuple(printable(cell) for cell in row) for row in rows]
    for line in aligned(Table(headings, tuple(others), "<" * len(headings))):
        stream.write(line + "\n")
