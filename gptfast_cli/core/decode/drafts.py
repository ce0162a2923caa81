"""Who is to draft, and how much at a time, as a person asks for it."""

from dataclasses import dataclass
from typing import Final

from gptfast_cli.core.errors import UsageError

ADAPTIVE: Final = "auto"
ADVISED: Final = "auto"
DEFAULT_DEPTH: Final = 5


@dataclass(frozen=True, slots=True)
class Drafting:
    """`draft` is a MODEL, `self:SCHEME`, `ngram`, or `auto` for what advice says; `depth` the tokens of a round.

    A depth of None takes as many as pay; with `auto`, advice has a depth too, unless `has_own_depth`.
    """

    draft: str
    depth: int | None = DEFAULT_DEPTH
    has_own_depth: bool = True


@dataclass(frozen=True, slots=True)
class Drafted:
    """The texts that are to be drafted for: how many side by side, of how many tokens, drawn at which temperature."""

    n_rows: int
    n_tokens: int
    temperature: float


def parse_depth(text: str) -> int | None:
    """A depth as a person writes it: a number, or `auto` for None. Raises UsageError."""
    if text == ADAPTIVE:
        return None
    if not text.isdecimal():
        raise UsageError(f"--speculate-k must be 0 or more, or {ADAPTIVE}, not {text!r}.")
    return int(text)
