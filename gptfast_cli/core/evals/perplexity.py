"""Perplexity of a text under a protocol, with its confidence interval."""

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from re import finditer
from typing import Literal

import torch

from gptfast_cli.core.engine.load import LoadedModel
from gptfast_cli.core.errors import UsageError
from gptfast_cli.core.evals.divergence import batched_mean
from gptfast_cli.core.evals.passages import BatchBudget, groups
from gptfast_cli.core.evals.protocols import DEFAULT_PROTOCOL, ProtocolText, TokenText, protocol_of
from gptfast_cli.core.evals.scoring import batch_budget_of, scores
from gptfast_cli.core.evals.tasks.bos_rules import bos_rules_of
from gptfast_cli.core.events import Job, Note, Progress
from gptfast_cli.core.models.decoder import NonFiniteLogitsError


@dataclass(frozen=True, slots=True)
class TextOptions:
    """A text file, and the name of the perplexity protocol."""

    file: Path
    protocol: str = DEFAULT_PROTOCOL

    def check(self) -> None:
        """Raise UsageError for an unknown protocol."""
        protocol_of(self.protocol)


@dataclass(frozen=True, slots=True)
class Perplexity:
    """Perplexity by a protocol; infinite if the model excludes a token of the text.

    unit:           perplexity per token or per word
    stderr:         standard error by batch means (20 batches); None for too few tokens
    stderr_tokens:  standard error that treats tokens as independent, as llama.cpp prints it; None for one token
    n_tokens:       predicted tokens, in `n_windows` of the text's `n_windows_all`
    """

    protocol: str
    value: float
    unit: Literal["token", "word"]
    stderr: float | None
    stderr_tokens: float | None
    n_tokens: int
    n_windows: int
    n_windows_all: int

    @property
    def is_partial(self) -> bool:
        """Whether an interrupt came before the last window."""
        return self.n_windows < self.n_windows_all


class PerplexitySum:
    """Accumulates the log-probabilities of windows, in text order."""

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
        """Add the log-probabilities of a window; `weight` is that of its mean, in tokens."""
        losses = [-logprob for logprob in logprobs]
        self._losses.extend(losses)
        self._sum += weight * math.fsum(losses) / len(losses)
        self._weight += weight
        self.n_windows += 1

    @property
    def value(self) -> float:
        """The perplexity so far; NaN before the first window."""
        if not self._weight:
            return math.nan
        mean = self._sum / self._weight * self._tokens_per_unit
        return math.exp(mean) if mean < 700 else math.inf  # exp would overflow

    def result(self) -> Perplexity:
        """The perplexity of all windows so far; there must be at least one."""
        assert self.n_windows
        losses = torch.frombuffer(self._losses, dtype=torch.float64)
        value, n = self.value, len(losses)
        batched = batched_mean(losses)
        spread = losses.std(correction=0).item() / math.sqrt(n - 1) if n > 1 else math.nan
        scale = value * self._tokens_per_unit  # delta method: d exp(x) = exp(x) dx
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


def protocol_text(text: str, protocol: str, loaded: LoadedModel) -> ProtocolText:
    """Tokenize a text for a protocol. Raises UsageError if the model or the protocol cannot take it."""
    if loaded.tokenizer is None:
        raise UsageError(f"{loaded.name} has no tokenizer, so it cannot read text.", "Use a model with a tokenizer.")
    if not text:
        raise UsageError("The text is empty.", "Use a text of a page or more.")
    tokens = array("i", loaded.tokenizer.encode(text))
    bos_rules = bos_rules_of(loaded, loaded.tokenizer)
    found = TokenText(
        tokens=tokens,
        bos_id=bos_rules.prefix_id if bos_rules.adds_bos else None,
        prefix_id=bos_rules.prefix_id,
        n_words=1 + sum(1 for _ in finditer(r"\s+", text)),
        max_context=loaded.config.max_context,
    )
    whole = ProtocolText(protocol_of(protocol), found)
    whole.check(loaded.name)
    loaded.check_ids(next(whole.windows()).passage.tokens)  # a protocol may put a prefix before the text
    return whole


def measure_perplexity(
    loaded: LoadedModel, text: ProtocolText, budget: BatchBudget | None = None
) -> Job[Perplexity | None]:
    """Perplexity of a checked text. An interrupt gives a partial result, None before the first window.

    budget: limits of a group of windows, and of its batches; None: those of the model
    """
    budget = budget or batch_budget_of(loaded.model)
    total = PerplexitySum(text)
    n_all = text.n_windows
    try:
        for group in groups(text.windows(), budget.cache_tokens):
            yield Progress("perplexity", total.n_windows, n_all, "windows", so_far=total.value)
            found = dict(scores(loaded.model, [window.passage for window in group], budget))
            for number, window in enumerate(group):
                if not found[number].is_defined:
                    where = f"in window {total.n_windows + 1:,} of the text's {n_all:,}"
                    raise NonFiniteLogitsError(loaded.model.dtype, where)
                total.add(window.weight, found[number].logprobs)
        yield Progress("perplexity", n_all, n_all, "windows", so_far=total.value)
    except KeyboardInterrupt:
        yield Note(f"Interrupted: this is the perplexity of {total.n_windows:,} of {n_all:,} windows.")
    return total.result() if total.n_windows else None
