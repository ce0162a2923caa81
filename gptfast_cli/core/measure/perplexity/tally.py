"""Perplexity as it comes together, window by window."""

import math
from array import array
from collections.abc import Sequence

import torch

from gptfast_cli.core.measure.batch_means import batched_mean
from gptfast_cli.core.measure.perplexity.protocols import ProtocolText
from gptfast_cli.core.measure.perplexity.results import Perplexity


class Tally:
    """Takes in the log-probabilities of each window's tokens, in the order of the text."""

    def __init__(self, text: ProtocolText) -> None:
        self._protocol = text.protocol
        self._counts_words = text.protocol.windowing.counts_words
        self._n_windows_all = text.n_windows
        self._tokens_per_unit = len(text.text.tokens) / text.text.n_words if self._counts_words else 1.0
        self._losses = array("d")  # -log p of each token, 8 bytes each
        self._sum = 0.0  # of each window's mean times its weight
        self._weight = 0
        self.n_windows = 0

    def add(self, weight: int, logprobs: Sequence[float]) -> None:
        """Take in a window's tokens."""
        losses = [-logprob for logprob in logprobs]
        self._losses.extend(losses)
        self._sum += weight * math.fsum(losses) / len(losses)
        self._weight += weight
        self.n_windows += 1

    @property
    def value(self) -> float:
        """The perplexity so far; NaN as long as nothing counts."""
        if not self._weight:
            return math.nan
        mean = self._sum / self._weight * self._tokens_per_unit
        return math.exp(mean) if mean < 700 else math.inf  # beyond it exp is no float

    def result(self) -> Perplexity:
        """The perplexity of all windows so far, of which there must be one."""
        assert self.n_windows
        losses = torch.frombuffer(self._losses, dtype=torch.float64)
        value, n = self.value, len(losses)
        batched = batched_mean(losses)
        spread = losses.std(correction=0).item() / math.sqrt(n - 1) if n > 1 else math.nan
        scale = value * self._tokens_per_unit  # of the logarithm's errors
        return Perplexity(
            protocol=self._protocol.name,
            value=value,
            unit="word" if self._counts_words else "token",
            stderr=None if batched is None else scale * batched.stderr,
            stderr_tokens=scale * spread if math.isfinite(spread) else None,
            n_tokens=n,
            n_windows=self.n_windows,
            n_windows_all=self._n_windows_all,
        )
