"""A table as plain text in aligned columns, for a person to read and for `awk` and `column` to take apart."""

from collections.abc import Sequence
from typing import TextIO

from gptfast_cli.render.terminal import printable


def write_table(rows: Sequence[Sequence[str]], stream: TextIO) -> None:
    """Write rows of equally many cells, the heading first."""
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
        stream.write("  ".join(cells).rstrip() + "\n")
