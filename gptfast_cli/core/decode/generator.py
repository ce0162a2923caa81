"""Decoding sequences together, step by step; it knows token ids only, and nothing of text.

Sequences come and go while others are under way: one that is over leaves its row to the next prompt at once.
"""

import math
from collections.abc import Sequence as Tokens
from dataclasses import dataclass

from torch import Tensor

from gptfast_cli.core.decode.logprobs import token_logprobs
from gptfast_cli.core.decode.runner import Runner
from gptfast_cli.core.decode.sampler import check_tokens, draw_tokens
from gptfast_cli.core.decode.sequence import Sequence
from gptfast_cli.core.events import Job, Measured, Progress
from gptfast_cli.core.kernels.phases import phase
from gptfast_cli.core.stopwatch import Stopwatch

PREFILL_CHUNK = 512
"""Prompt tokens fed at once: enough to keep the arithmetic busy, few enough to bound the memory of their scores."""


@dataclass(frozen=True, slots=True)
class Admission:
    """What it took to begin a sequence: prompt tokens fed, those that the cache held already, and the time."""

    n_fed: int
    n_reused: int
    prefill_seconds: float
    first_token_seconds: float


AHEAD_SECONDS = 0.008
"""A model that chooses by itself goes on for so long before its tokens are looked at: too short to be seen, long enough
that what is done between the steps of a small model costs them little."""

_MOST_AHEAD = 16  # steps


@dataclass(frozen=True, slots=True)
class Stride:
    """What a call of `step` did: the sequences that it advanced, of which some may now be over, and what it read.

    seconds: of each step; all sequences have one more token from each
    """

    advanced: list[Sequence]
    seconds: list[float]
    n_bytes: int

    @property
    def n_tokens(self) -> int:
        """Tokens that all sequences together were given."""
        return len(self.advanced) * len(self.seconds)


class Generator:
    """Decodes up to `runner.n_rows` sequences together: `admit` while there is room, `step` while any is active."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._sequences: list[Sequence] = []  # row by row; some may be over until the next call
        self._step_seconds = math.inf  # of the last step
        self._last_prompt: tuple[tuple[int, ...], Tensor] | None = None  # with the logits of the token after it

    @property
    def active(self) -> list[Sequence]:
        """The sequences that are not over."""
        return [sequence for sequence in self._sequences if sequence.finish_reason is None]

    @property
    def has_room(self) -> bool:
        """Whether another sequence can begin."""
        return len(self.active) < self._runner.n_rows

    def admit(self, sequence: Sequence) -> Job[Admission]:
        """Feed a prompt, but for what the cache holds of it, and draw the first token."""
        assert self.has_room
        self._retire()
        row, prompt = len(self._sequences), sequence.prompt
        watch, drawing = Stopwatch(self._runner.model.device), Stopwatch(self._runner.model.device)
        with watch:
            logits, n_reused = self._recall(row, prompt)
        for first in range(n_reused, len(prompt), PREFILL_CHUNK):
            with watch:
                logits = self._runner.prefill(row, prompt[first : first + PREFILL_CHUNK])
            yield Progress("prefill", min(first + PREFILL_CHUNK, len(prompt)), len(prompt), "tokens")
        assert logits is not None
        self._last_prompt = prompt, logits
        yield Measured("prefill", len(prompt) - n_reused, watch.seconds)
        self._sequences.append(sequence)
        with drawing:
            self._draw(logits.unsqueeze(0), [sequence])
        yield Measured("first token", 1, drawing.seconds)
        return Admission(len(prompt) - n_reused, n_reused, watch.seconds, drawing.seconds)

    def step(self, most: int = _MOST_AHEAD) -> Job[Stride]:
        """One more token for each active sequence, or a few of a model that chooses by itself, until one is over."""
        watch = Stopwatch(self._runner.model.device)
        with watch:
            self._retire()
            advanced = list(self._sequences)
            seconds = self._run_ahead(advanced, most)
            if not seconds:
                logits = self._runner.step([sequence.generated[-1] for sequence in advanced])
                self._draw(logits, advanced)
        # of several steps, each has its share of what came between the calls
        seconds = [each + (watch.seconds - sum(seconds)) / len(seconds) for each in seconds] or [watch.seconds]
        self._step_seconds = seconds[-1]
        n_bytes = sum(self._runner.step_bytes(len(advanced), -1 - step) for step in range(len(seconds)))
        stride = Stride(advanced, seconds, n_bytes)
        yield Measured("decode", stride.n_tokens, watch.seconds)
        return stride

    def _run_ahead(self, advanced: list[Sequence], most: int) -> list[float]:
        """Let the model choose tokens by itself where it can; the seconds of each step, none where it cannot."""
        draws = [sequence.next_draw for sequence in advanced]
        keeps_logits = any(sequence.n_logprobs is not None for sequence in advanced)
        if keeps_logits or not self._runner.can_run_ahead(draws):
            return []
        affordable = max(1, int(AHEAD_SECONDS / self._step_seconds))
        n_steps = min(most, _MOST_AHEAD, affordable, *(sequence.n_left for sequence in advanced))
        stops = frozenset().union(*(sequence.limits.stop_ids for sequence in advanced))
        chosen = self._runner.run_ahead(draws, n_steps, stops)
        for tokens in chosen.tokens:
            check_tokens(tokens, self._runner.model.config.vocab_size)
            for sequence, token in zip(advanced, tokens, strict=True):
                sequence.take(token)
        return chosen.seconds

    def _recall(self, row: int, prompt: tuple[int, ...]) -> tuple[Tensor | None, int]:
        """Begin a row with what the cache holds of a prompt; the logits after it, where they are known."""
        if self._last_prompt is not None and self._last_prompt[0] == prompt:
            n_reused = self._runner.recall(row, prompt)
            if n_reused == len(prompt):
                return self._last_prompt[1], n_reused
        # at least one token must be fed to know what comes after
        return None, self._runner.recall(row, prompt[:-1])

    def _draw(self, logits: Tensor, sequences: Tokens[Sequence]) -> None:
        with phase("sample"), self._runner.alone():
            tokens = draw_tokens(logits, [sequence.next_draw for sequence in sequences])
        for row, (sequence, token) in enumerate(zip(sequences, tokens, strict=True)):
            sequence.take(token)
            if sequence.n_logprobs is not None and sequence.finish_reason != "eos":
                sequence.logprobs.append(token_logprobs(logits[row], token, sequence.n_logprobs))

    def _retire(self) -> None:
        """Give the rows of sequences that are over to the last ones, so that the active ones have the first rows."""
        for row in reversed(range(len(self._sequences))):
            if self._sequences[row].finish_reason is not None:
                last = self._sequences.pop()
                if row < len(self._sequences):
                    self._runner.move(len(self._sequences), row)
                    self._sequences[row] = last
