"""Decoding a batch of sequences, one token each a step; it knows token ids only, and nothing of text."""

from collections.abc import Sequence as Tokens
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from gptfast_cli.core.decode.runner import Runner
from gptfast_cli.core.decode.sampler import DrawKey, Sampler
from gptfast_cli.core.events import Job, Measured, Progress
from gptfast_cli.core.model.transformer import Transformer
from gptfast_cli.core.stopwatch import Stopwatch

FinishReason = Literal["stop", "eos", "length", "interrupted"]


@dataclass(slots=True)
class Sequence:
    """One sequence under way; `id` names it in draws and results. It is over once it has a finish reason."""

    id: int
    prompt: tuple[int, ...]
    generated: list[int] = field(default_factory=list)  # without the end token
    finish_reason: FinishReason | None = None

    @property
    def key(self) -> DrawKey:
        """What the draw of the next token depends on."""
        return DrawKey(self.id, self.prompt, self.generated)


@dataclass(frozen=True, slots=True)
class Limits:
    """When a sequence is over."""

    max_new_tokens: int
    max_context: int  # prompt and generated tokens together
    stop_ids: frozenset[int]


@dataclass(frozen=True, slots=True)
class Step:
    """What a step did: the sequences that it advanced, some of which may now be over, and the bytes it read for it."""

    advanced: list[Sequence]
    n_bytes: int


PREFILL_CHUNK = 512
"""Prompt tokens fed at once: enough to keep the arithmetic busy, few enough to bound the memory of their scores."""


class Generator:
    """Decodes sequences together until all are over: `prefill` once, then `step` while `active` holds any."""

    def __init__(self, model: Transformer, sampler: Sampler, sequences: Tokens[Sequence], limits: Limits) -> None:
        self._sequences = list(sequences)  # those in the cache, row by row
        self._prompts = list(dict.fromkeys(sequence.prompt for sequence in sequences))
        self._runner = Runner(model, len(self._prompts))
        self._sampler = sampler
        self._limits = limits
        self._logits: Tensor | None = None  # of the tokens to come, where they are known already

    @property
    def active(self) -> list[Sequence]:
        """The sequences that are not over, in the order given."""
        return [sequence for sequence in self._sequences if sequence.finish_reason is None]

    @property
    def prompt_tokens(self) -> int:
        """Tokens that prefill feeds."""
        return sum(map(len, self._prompts))

    def prefill(self) -> Job[float]:
        """Feed every prompt, equal ones once; returns the seconds that it took."""
        total, done = self.prompt_tokens, 0
        watch, logits = Stopwatch(self._runner.model.device), {}
        for row, prompt in enumerate(self._prompts):
            for first in range(0, len(prompt), PREFILL_CHUNK):
                chunk = prompt[first : first + PREFILL_CHUNK]
                with watch:
                    logits[prompt] = self._runner.prefill(row, chunk)
                done += len(chunk)
                yield Progress("prefill", done, total, "tokens")
        self._runner.select([self._prompts.index(sequence.prompt) for sequence in self._sequences])
        self._logits = torch.stack([logits[sequence.prompt] for sequence in self._sequences])
        yield Measured("prefill", total, watch.seconds)
        return watch.seconds

    def step(self) -> Step:
        """One more token for each active sequence."""
        advanced, n_bytes = self._retire(), 0
        logits, self._logits = self._logits, None
        if logits is None:
            n_bytes = self._runner.step_bytes
            logits = self._runner.step([sequence.generated[-1] for sequence in advanced])
        tokens = self._sampler.draw(logits, [sequence.key for sequence in advanced])
        for sequence, token in zip(advanced, tokens, strict=True):
            self._take(sequence, token)
        return Step(advanced, n_bytes)

    def _retire(self) -> list[Sequence]:
        """Drop the rows of sequences that are over; returns the ones that go on."""
        rows = [row for row, sequence in enumerate(self._sequences) if sequence.finish_reason is None]
        if len(rows) < len(self._sequences):
            self._runner.select(rows)
            self._sequences = [self._sequences[row] for row in rows]
        return self._sequences

    def _take(self, sequence: Sequence, token: int) -> None:
        if token in self._limits.stop_ids:
            sequence.finish_reason = "eos"
            return
        sequence.generated.append(token)
        n_tokens = len(sequence.generated)
        if n_tokens >= self._limits.max_new_tokens or len(sequence.prompt) + n_tokens >= self._limits.max_context:
            sequence.finish_reason = "length"
