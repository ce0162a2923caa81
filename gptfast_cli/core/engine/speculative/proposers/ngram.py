"""Prompt lookup: what followed the last few tokens when they stood in the text before (Saxena 2023).

It costs nothing, and pays where a text repeats itself or its prompt: summaries, edits, code.
"""

from collections.abc import Sequence

import torch

from gptfast_cli.core.engine.sampling import SamplingContext
from gptfast_cli.core.engine.speculative.proposers import Proposal

LONGEST, SHORTEST = 4, 2
"""Tokens that have to be the same: a longer match is looked for first, and a shorter one says too little."""


class NGram:
    """See Proposer; its tokens are certain, so that one is accepted with the probability that the target gives it."""

    bytes_per_step = 0

    def __init__(self, n_rows: int) -> None:
        self._rows = [_Index() for _ in range(n_rows)]

    def begin(self, row: int, prompt: Sequence[int]) -> None:
        """See Proposer."""
        self._rows[row] = _Index()
        self._rows[row].read(prompt)

    def propose(self, contexts: Sequence[SamplingContext], draft_lengths: Sequence[int]) -> list[Proposal]:
        """See Proposer."""
        proposals = []
        for index, context, draft_length in zip(self._rows, contexts, draft_lengths, strict=False):
            index.read(context.generated[len(index.tokens) - len(context.prompt) :])
            proposals.append(Proposal(torch.tensor(index.followers(draft_length), dtype=torch.int64), None))
        return proposals

    def move(self, source: int, target: int) -> None:
        """See Proposer."""
        self._rows[target] = self._rows[source]
        self._rows[source] = _Index()


class _Index:
    """Where each run of tokens was followed by something last."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self._ends: dict[tuple[int, ...], int] = {}  # of a run, the place of the token after it

    def read(self, tokens: Sequence[int]) -> None:
        """Go on with tokens that are certain by now."""
        for token in tokens:
            for n in range(SHORTEST, min(LONGEST, len(self.tokens)) + 1):
                self._ends[tuple(self.tokens[-n:])] = len(self.tokens)
            self.tokens.append(token)

    def followers(self, most: int) -> list[int]:
        """Up to so many tokens that followed the longest known run at the end."""
        for n in range(min(LONGEST, len(self.tokens)), SHORTEST - 1, -1):
            position = self._ends.get(tuple(self.tokens[-n:]))
            if position is not None:
                return self.tokens[position : position + most]
        return []
