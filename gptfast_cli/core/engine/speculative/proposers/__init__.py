"""Who drafts tokens for a target to verify: one file for each kind of proposer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from gptfast_cli.core.engine.sampling import SamplingContext


@dataclass(frozen=True, slots=True)
class Proposal:
    """Tokens [tokens] int64 drafted for one sequence, and the probabilities [tokens, vocab] that they were drawn from.

    Both are on the proposer's device, where they may still be on their way. None in place of the probabilities stands
    for certainty: the tokens were not drawn at all.
    """

    tokens: Tensor
    probabilities: Tensor | None


class Proposer(Protocol):
    """Follows the sequences of a generator row by row, and drafts what may come next.

    A proposal may depend on the tokens so far and on draws of its own, never on whether its tokens will be accepted.
    """

    bytes_per_step: int
    """That one drafted token of a batch reads, but for keys and values."""

    def begin(self, row: int, prompt: Sequence[int]) -> None:
        """A sequence with this prompt takes a row."""
        ...

    def propose(self, contexts: Sequence[SamplingContext], draft_lengths: Sequence[int]) -> list[Proposal]:
        """Draft up to so many tokens after those of each of the first rows; fewer, or none, are as good."""
        ...

    def move(self, source: int, target: int) -> None:
        """The sequence of a row goes on in another."""
        ...
