"""Text on a stream: escapes only on a terminal, tables within 80 columns, Markdown, and names of any length."""

import math
import os
import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, TextIO

_CONTROL_PICTURES = 0x2400  # the Unicode block that draws C0 characters: ESC becomes U+241B
_VISIBLE: Final = {
    **{code: chr(_CONTROL_PICTURES + code) for code in range(0x20) if chr(code) not in "\n\t"},
    0x7F: "\N{SYMBOL FOR DELETE}",
    **dict.fromkeys(range(0x80, 0xA0), "\N{REPLACEMENT CHARACTER}"),  # C1: 0x9B is an ESC [ in one byte
}


def shows_escapes(stream: TextIO) -> bool:
    """Whether colours and cursor movements are welcome on the stream: a terminal, not a dumb one, without NO_COLOR."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def printable(text: str) -> str:
    """The text with its control characters made visible, all but newline and tab.

    A model may write an ESC, and a file's name may hold one; on a terminal it would act instead of being read.
    """
    return text.translate(_VISIBLE)


DIM: Final = "2"


def styled(text: str, code: str, stream: TextIO) -> str:
    """The text in an SGR style, such as DIM, where the stream shows escapes."""
    return f"\x1b[{code}m{text}\x1b[0m" if shows_escapes(stream) else text


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


COLUMNS: Final = 80


def wrapped(sentence: str, indent: str = "") -> list[str]:
    """The lines of a sentence; a word that is longer than a line is broken."""
    return textwrap.wrap(
        printable(sentence), COLUMNS, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False
    )


def write_dim(sentence: str, stream: TextIO) -> None:
    """Write a sentence in wrapped, dim lines."""
    for line in wrapped(sentence):
        stream.write(styled(line, DIM, stream) + "\n")


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


def markdown_lines(table: Table) -> Iterator[str]:
    """Heading, rule and rows; a short row ends in empty cells."""
    yield _line(table.headings)
    yield _line(["---" if side == "<" else "--:" for side in table.sides])
    for row in table.rows:
        yield _line([*row, *[""] * (len(table.headings) - len(row))])


def code(text: str) -> str:
    """A span of code, in which nothing is markup; longer fences where the text has backticks of its own."""
    fence = "`"
    while fence in text:
        fence += "`"
    return f"{fence}{text}{fence}" if fence == "`" else f"{fence} {text} {fence}"


def escaped(text: str) -> str:
    """Text in which no name makes markup."""
    return re.sub(r"[\\`*_<]", r"\\\g<0>", text)


def _line(texts: Sequence[str]) -> str:
    return "| " + " | ".join(text.replace("|", "\\|") for text in texts) + " |"


_EIGHTHS: Final = "".join(chr(0x2590 - n) for n in range(1, 9))  # from one eighth of a block to a whole one


def bar(share: float, width: int, *, blocks: bool) -> str:
    """A bar of a share 0..1, padded to the width."""
    if not math.isfinite(share):
        return " " * width
    if not blocks:
        return f"{'#' * round(share * width):<{width}}"
    whole, rest = divmod(round(share * width * 8), 8)
    return f"{_EIGHTHS[-1] * whole + (_EIGHTHS[rest - 1] if rest else ''):<{width}}"


def shows_blocks(stream: TextIO) -> bool:
    """Whether the stream's encoding has the blocks; a stream without an encoding takes any text."""
    try:
        _EIGHTHS.encode(stream.encoding or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


_LABEL_COLUMNS = 9
_FIRST_COLUMNS = 15


def write_block(lines: Iterable[Sequence[str]], stream: TextIO) -> None:
    """Write label and cells of each line after an empty one; an empty cell is left out."""
    stream.write("\n")
    for label, *cells in lines:
        first, *others = [cell for cell in cells if cell] or [""]
        line = f"{label:<{_LABEL_COLUMNS}}{first:<{_FIRST_COLUMNS - 1}} " + "   ".join(others)
        stream.write(styled(printable(line.rstrip()), DIM, stream) + "\n")
    stream.flush()


_CUT = "..."  # in every encoding, unlike the one character


def short_names(names: Iterable[str], width: int) -> dict[str, str]:
    """A short form of each name: itself, its two ends, or these and a number where two would be the same."""
    shown: dict[str, str] = {}
    for name in dict.fromkeys(names):
        short, n = shortened(name, width), 1
        while short in shown.values():
            n += 1
            short = f"{shortened(name, width - len(f' #{n}'))} #{n}"
        shown[name] = short
    return shown


def shortened(name: str, width: int) -> str:
    """The name in one line; of a long one a third from its beginning and the rest from its end."""
    line = one_line(name)
    if len(line) <= width:
        return line
    n_first = (width - len(_CUT)) // 3
    return line[:n_first] + _CUT + line[len(line) - (width - len(_CUT) - n_first) :]


def one_line(name: str) -> str:
    """The whole name without line ends and tabs, its other control characters made visible."""
    return printable(" ".join(name.split()))
