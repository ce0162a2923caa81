"""Tables, code and text as GitHub's Markdown shows them."""

import re
from collections.abc import Iterator, Sequence

from gptfast_cli.render.table import Table


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
