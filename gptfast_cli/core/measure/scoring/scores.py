"""How probable each predicted token of a passage is to a model, and whether it is the likeliest one."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from gptfast_cli.core.device import to_device
from gptfast_cli.core.measure.scoring.passages import Passage
from gptfast_cli.core.measure.scoring.reading import Reading, read, room_of
from gptfast_cli.core.model.decoder import Decoder


@dataclass(frozen=True, slots=True)
class Score:
    """Of a passage's predicted tokens, in their order.

    logprobs: natural logarithms of probabilities, at temperature 1 with nothing cut off
    likeliest: whether no token was more probable, the lowest id among equals
    """

    logprobs: tuple[float, ...]
    likeliest: tuple[bool, ...]

    @property
    def is_defined(self) -> bool:
        """Whether all logits that it was made from were finite; else some of `logprobs` are NaN."""
        return not any(map(math.isnan, self.logprobs))

    @property
    def logprob(self) -> float:
        """Of all the predicted tokens together."""
        return math.fsum(self.logprobs)

    @property
    def is_greedy(self) -> bool:
        """Whether greedy decoding would have said just this."""
        return all(self.likeliest)


def scores(model: Decoder, passages: Sequence[Passage]) -> Iterator[tuple[int, Score]]:
    """The score of each passage beside its number, as soon as it is known, so in any order.

    In float32 on a CPU a score is the same to the bit in any company. Where logits are not finite a score is not
    defined, of that passage alone.
    """
    undefined = []
    for number, score in _scores(model, passages):
        if score.is_defined:
            yield number, score
        else:
            undefined.append(number)
    for number in undefined:  # each alone: NaN behind a token spoils the sums before it, which other passages share
        yield from ((number, score) for _, score in _scores(model, [passages[number]]))


def _scores(model: Decoder, passages: Sequence[Passage]) -> Iterator[tuple[int, Score]]:
    waiting = [passage.n_predicted for passage in passages]
    values: dict[int, list[tuple[float, bool]]] = {}
    for reading in read(model, passages, room_of(model)):
        for prediction, value in zip(reading.predictions, _values(model, reading, passages), strict=True):
            number = prediction.passage
            if number not in values:
                values[number] = [(math.nan, False)] * passages[number].n_predicted
            values[number][prediction.token - passages[number].n_given] = value
            waiting[number] -= 1
            if not waiting[number]:
                logprobs, likeliest = zip(*values.pop(number), strict=True)
                yield number, Score(logprobs, likeliest)


def _values(model: Decoder, reading: Reading, passages: Sequence[Passage]) -> list[tuple[float, bool]]:
    """The log-probability of each prediction, NaN where logits are not finite, and whether it is the likeliest."""
    logits = reading.logits
    rows = to_device([prediction.row for prediction in reading.predictions], torch.int64, logits.device)
    tokens = [passages[prediction.passage].tokens[prediction.token] for prediction in reading.predictions]
    targets = to_device(tokens, torch.int64, logits.device)
    totals, likeliest = model.outlook(logits)
    totals = totals.where(totals.isfinite(), torch.nan)
    logprobs = logits[rows, targets] - totals[rows]
    return list(zip(logprobs.tolist(), (likeliest[rows] == targets).tolist(), strict=True))
