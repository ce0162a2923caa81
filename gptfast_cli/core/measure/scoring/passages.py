"""A passage of text to be scored: what is given of it, and what follows."""

from collections.abc import Sequence
from dataclasses import dataclass

from gptfast_cli.core.errors import UsageError


@dataclass(frozen=True, slots=True)
class Passage:
    """Tokens, of which the first `n_given` are given, at least one; each of the others is predicted from all before."""

    tokens: tuple[int, ...]
    n_given: int

    @property
    def fed(self) -> tuple[int, ...]:
        """What the model is fed: the last token is only predicted."""
        return self.tokens[:-1]

    @property
    def n_predicted(self) -> int:
        """Tokens that are predicted."""
        return len(self.tokens) - self.n_given


def fitted(context: Sequence[int], continuation: Sequence[int], max_context: int) -> Passage:
    """A continuation behind as much of its context as the model can be fed, which is cut off from the left.

    Raises UsageError where there is no context or nothing to predict, and for a continuation that is longer than what
    the model holds.
    """
    if not context or not continuation:
        raise UsageError("A passage to be scored needs a token to begin with, and one that follows.")
    if len(continuation) > max_context:
        raise UsageError(
            f"A continuation of {len(continuation)} tokens is beyond the {max_context} that the model can hold.",
            "Score it in pieces, or take a model with a longer context.",
        )
    tokens = (*context, *continuation)[-(max_context + 1) :]
    return Passage(tokens, len(tokens) - len(continuation))
