"""A model that answers requests, each kind in batches of its own."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from gptfast_cli.core.decode.loading import LoadedModel
from gptfast_cli.core.measure.scoring.passages import Passage
from gptfast_cli.core.measure.scoring.scores import scores
from gptfast_cli.core.measure.tasks.beginnings import Beginnings
from gptfast_cli.core.measure.tasks.generating import generated
from gptfast_cli.core.measure.tasks.requests import (
    Answer,
    Generation,
    Likelihood,
    LikelihoodAnswer,
    Request,
    Rolling,
)

_BLOCK: Final = 2048
"""Requests whose tokens are in memory at once; enough of them to find such as begin alike, and of about one length."""


@dataclass(frozen=True, slots=True)
class Answering:
    """A model, how texts begin for it, and how it generates: so many answers side by side, drawn by this seed."""

    loaded: LoadedModel
    beginnings: Beginnings
    batch_size: int
    seed: int

    def answers(self, requests: Sequence[Request]) -> Iterator[tuple[int, Answer]]:
        """The answer to each request beside its number, block by block in any order.

        Raises UsageError for a request that has no answer, such as a continuation without a token.
        """
        numbered = list(enumerate(requests))
        for first in range(0, len(numbered), _BLOCK):
            block = numbered[first : first + _BLOCK]
            yield from self._likelihoods([(n, each) for n, each in block if isinstance(each, Likelihood)])
            yield from self._rollings([(n, each) for n, each in block if isinstance(each, Rolling)])
            yield from self._generations([(n, each) for n, each in block if isinstance(each, Generation)])

    def _likelihoods(self, requests: Sequence[tuple[int, Likelihood]]) -> Iterator[tuple[int, Answer]]:
        passages = [self.beginnings.pair(request.context, request.continuation) for _, request in requests]
        for at, score in scores(self.loaded.model, passages):
            yield requests[at][0], LikelihoodAnswer(score.logprob, score.is_greedy)

    def _rollings(self, requests: Sequence[tuple[int, Rolling]]) -> Iterator[tuple[int, Answer]]:
        windows: list[Passage] = []
        owners: list[int] = []
        for number, request in requests:
            own = list(self.beginnings.rolling(request.text))
            windows += own
            owners += [number] * len(own)
            if not own:
                yield number, 0.0
        totals: dict[int, list[float]] = {}
        n_windows = Counter(owners)
        for at, score in scores(self.loaded.model, windows):
            number = owners[at]
            totals.setdefault(number, []).append(score.logprob)
            if len(totals[number]) == n_windows[number]:
                yield number, math.fsum(totals.pop(number))

    def _generations(self, requests: Sequence[tuple[int, Generation]]) -> Iterator[tuple[int, Answer]]:
        if not requests:
            return
        asked = [request for _, request in requests]
        tokenizer = self.beginnings.tokenizer
        for at, text in generated(self.loaded, tokenizer, asked, batch_size=self.batch_size, seed=self.seed):
            yield requests[at][0], text
