"""A model that answers requests, each kind in batches of its own."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from gptfast_cli.core.decode.loading import LoadedModel
from gptfast_cli.core.errors import UsageError
from gptfast_cli.core.measure.scoring.passages import Passage
from gptfast_cli.core.measure.scoring.scores import scores
from gptfast_cli.core.measure.tasks.beginnings import Beginnings
from gptfast_cli.core.measure.tasks.generating import generated
from gptfast_cli.core.measure.tasks.requests import (
    Answer,
    Failure,
    Generation,
    Likelihood,
    LikelihoodAnswer,
    Request,
    Rolling,
)
from gptfast_cli.core.model.logits import NonFiniteLogitsError

_BLOCK: Final = 2048
"""Requests whose tokens are in memory at once; enough of them to find such as begin alike, and of about one length."""


@dataclass(frozen=True, slots=True)
class Answering:
    """A model, how texts begin for it, and how it generates: so many answers side by side, drawn by this seed."""

    loaded: LoadedModel
    beginnings: Beginnings
    batch_size: int
    seed: int

    def answers(self, requests: Sequence[Request]) -> Iterator[tuple[int, Answer | Failure]]:
        """The answer to each request beside its number, block by block in any order.

        It is a Failure where a request cannot have one, such as a continuation without a token.
        """
        numbered = list(enumerate(requests))
        for first in range(0, len(numbered), _BLOCK):
            block = numbered[first : first + _BLOCK]
            yield from self._likelihoods([(n, each) for n, each in block if isinstance(each, Likelihood)])
            yield from self._rollings([(n, each) for n, each in block if isinstance(each, Rolling)])
            yield from self._generations([(n, each) for n, each in block if isinstance(each, Generation)])

    def _likelihoods(self, requests: Sequence[tuple[int, Likelihood]]) -> Iterator[tuple[int, Answer | Failure]]:
        passages: list[Passage] = []
        owners: list[int] = []
        for number, request in requests:
            try:
                passages.append(self.beginnings.pair(request.context, request.continuation))
            except UsageError as error:
                yield number, Failure(error.message)
            else:
                owners.append(number)
        for at, score in scores(self.loaded.model, passages):
            yield owners[at], LikelihoodAnswer(score.logprob, score.is_greedy) if score.is_defined else self._failure

    def _rollings(self, requests: Sequence[tuple[int, Rolling]]) -> Iterator[tuple[int, Answer | Failure]]:
        windows: list[Passage] = []
        owners: list[int] = []
        for number, request in requests:
            try:
                own = list(self.beginnings.rolling(request.text))
            except UsageError as error:
                yield number, Failure(error.message)
                continue
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
                total = math.fsum(totals.pop(number))
                yield number, self._failure if math.isnan(total) else total

    @property
    def _failure(self) -> Failure:
        """Of a request for which the model gives no finite numbers."""
        return Failure(NonFiniteLogitsError(self.loaded.model.dtype, "along this text").message)

    def _generations(self, requests: Sequence[tuple[int, Generation]]) -> Iterator[tuple[int, Answer | Failure]]:
        if not requests:
            return
        asked = [request for _, request in requests]
        for at, text in generated(self.loaded, self.beginnings, asked, batch_size=self.batch_size, seed=self.seed):
            yield requests[at][0], text
