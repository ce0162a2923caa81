"""Who is to draft, and how much at a time, as a person asks for it."""

from dataclasses import dataclass
from typing import Final

from gptfast_cli.core.errors import UsageError

ADAPTIVE: Final = "auto"
DEFAULT_DEPTH: Final = 5


@dataclass(frozen=True, slots=True)
class Drafting:
    """`draft` is a MODEL, `self:SCHEME` or `ngram`; `depth` the tokens of a round, None for as many as pay."""

    draft: str
    depth: int | None = DEFAULT_DEPTH


def parse_depth(text: str) -> int | None:
    """A depth as a person writes it: a number, or `auto` for None. Raises UsageError."""
    if text == ADAPTIVE:
        return None
    if not text.isdecimal():
        raise UsageError(f"--speculate-k must be 0 or more, or {ADAPTIVE}, not {text!r}.")
    return int(text)
