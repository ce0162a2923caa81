"""Prompt lookup (Saxena 2023): draft the tokens that followed the last occurrence of the text's final n-gram.

It costs nothing, and pays where a text repeats itself or its prompt: summaries, edits, code.
"""

from collections.abc import Sequence

import torch

from gptfast_cli.core.engine.sampling import SamplingContext
from gptfast_cli.core.engine.speculative.proposers import Proposal

LONGEST, SHORTEST = 4, 2
"""Lengths of the n-grams to match; the longest match is used."""


class NGram:
    """A deterministic proposer (q is one-hot): a token is accepted with its target probability p."""

    bytes_per_step = 0
    may_be_empty = True
    native_runner = None

    def __init__(self, n_rows: int) -> None:
        self._rows = [_Index() for _ in range(n_rows)]

    def begin(self, row: int, prompt: Sequence[int], n_tokens: int | None = None) -> int:  # noqa: ARG002  # it is quick
        self._rows[row] = _Index()
        self._rows[row].read(prompt)
        return 0

    def propose(self, contexts: Sequence[SamplingContext], draft_lengths: Sequence[int]) -> list[Proposal]:
        proposals = []
        for index, context, draft_length in zip(self._rows, contexts, draft_lengths, strict=False):
            index.read(context.generated[len(index.tokens) - len(context.prompt) :])
            proposals.append(Proposal(torch.tensor(index.followers(draft_length), dtype=torch.int64), None))
        return proposals

    def move(self, source: int, target: int) -> None:
        self._rows[target] = self._rows[source]
        self._rows[source] = _Index()


class _Index:
    """Last position of every n-gram of a text."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self._ends: dict[tuple[int, ...], int] = {}  # n-gram: position of the token after its last occurrence

    def read(self, tokens: Sequence[int]) -> None:
        """Append accepted tokens."""
        for token in tokens:
            for n in range(SHORTEST, min(LONGEST, len(self.tokens)) + 1):
                self._ends[tuple(self.tokens[-n:])] = len(self.tokens)
            self.tokens.append(token)

    def followers(self, most: int) -> list[int]:
        """Up to `most` tokens that followed the longest known n-gram at the end."""
        for n in range(min(LONGEST, len(self.tokens)), SHORTEST - 1, -1):
            position = self._ends.get(tuple(self.tokens[-n:]))
            if position is not None:
                return self.tokens[position : position + most]
        return []
