"""A block of numbers: on each line a label, one number, and what belongs to it."""

from collections.abc import Iterable, Sequence
from typing import TextIO

from gptfast_cli.render.terminal import printable, styled

_DIM = "2"
_LABEL_COLUMNS = 9
_FIRST_COLUMNS = 15


def write_block(lines: Iterable[Sequence[str]], stream: TextIO) -> None:
    """Write label and cells of each line after an empty one; an empty cell is left out."""
    stream.write("\n")
    for label, *cells in lines:
        first, *others = [cell for cell in cells if cell] or [""]
        line = f"{label:<{_LABEL_COLUMNS}}{first:<{_FIRST_COLUMNS - 1}} " + "   ".join(others)
        stream.write(styled(printable(line.rstrip()), _DIM, stream) + "\n")
    stream.flush()
