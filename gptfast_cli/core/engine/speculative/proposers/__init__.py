"""Proposers draft tokens for a target to verify: one file for each kind."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from gptfast_cli.core.engine.runner import Runner
from gptfast_cli.core.engine.sampling import SamplingContext


@dataclass(frozen=True, slots=True)
class Proposal:
    """Drafted tokens of one sequence, on the proposer's device (possibly not yet computed).

    tokens:        [n_drafted] int64
    probabilities: [n_drafted, vocab] that the tokens were drawn from; None for a deterministic proposal (one-hot)
    """

    tokens: Tensor
    probabilities: Tensor | None


class Proposer(Protocol):
    """Drafts tokens for the sequences of an engine, row by row.

    A proposal depends on the tokens so far and on the proposer's own random numbers, never on the acceptance uniforms.
    """

    bytes_per_step: int
    """Weight bytes read to draft one token of each row; keys and values are not counted."""

    may_be_empty: bool
    """Whether `propose` may draft no token although the draft length is above 0."""

    @property
    def native_runner(self) -> Runner | None:
        """Runner of a draft model whose rounds can run natively beside the target's; None: only by `propose`."""
        ...

    def begin(self, row: int, prompt: Sequence[int], n_tokens: int | None = None) -> int:
        """Start a sequence with this prompt in a row, feeding up to `n_tokens` of it (None: all).

        Returns how many are left, to be fed by calling it again with the same prompt before anything is proposed.
        """
        ...

    def propose(self, contexts: Sequence[SamplingContext], draft_lengths: Sequence[int]) -> list[Proposal]:
        """Draft up to `draft_lengths[row]` tokens for each of the first rows; fewer or none are allowed."""
        ...

    def move(self, source: int, target: int) -> None:
        """Move a sequence to another row."""
        ...
