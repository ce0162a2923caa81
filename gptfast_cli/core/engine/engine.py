"""Decoding sequences together, step by step; it knows token ids only, and nothing of text.

Sequences come and go while others are under way: one that is over leaves its row to the next prompt at once.
"""

from collections.abc import Sequence as Tokens
from dataclasses import dataclass

from gptfast_cli.core.backends.phases import phase
from gptfast_cli.core.engine.request import Request
from gptfast_cli.core.engine.runner import AHEAD_SECONDS, PREFILL_CHUNK, Runner
from gptfast_cli.core.engine.sampling import draw_tokens, token_logprobs
from gptfast_cli.core.engine.speculative.speculation import RoundOutput, Speculation
from gptfast_cli.core.events import Job, Measured, Progress
from gptfast_cli.core.models.decoder import Logits, NonFiniteLogitsError
from gptfast_cli.core.stopwatch import Stopwatch


@dataclass(frozen=True, slots=True)
class PrefillOutput:
    """What it took to begin a sequence: prompt tokens fed, those that the cache held already, and the time."""

    n_fed: int
    n_reused: int
    prefill_seconds: float
    first_token_seconds: float


_MOST_AHEAD = 16  # steps

MAX_UNDRAFTED = 4
"""Of these, where a proposer had nothing to propose and is soon to be asked again."""


@dataclass(frozen=True, slots=True)
class StepOutput:
    """What a call of `step` did: the sequences that it advanced, of which some may now be over, and what it read.

    counts: tokens that each of them was given
    """

    advanced: list[Request]
    counts: list[int]
    seconds: float
    n_bytes: int

    @property
    def n_tokens(self) -> int:
        """Tokens that all sequences together were given."""
        return sum(self.counts)


class Engine:
    """Decodes up to `runner.n_rows` sequences together: `admit` while there is room, `step` while any is active."""

    def __init__(
        self, runner: Runner, speculation: Speculation | None = None, *, isolates_failures: bool = False
    ) -> None:
        """`isolates_failures`: a sequence whose logits are not finite ends with its `failure`, and the others go on.

        Otherwise its failure is raised.
        """
        self._runner = runner
        self._isolates_failures = isolates_failures
        self._speculation = speculation
        self._sequences: list[Request] = []  # row by row; some may be over until the next call
        self._step_seconds = runner.guessed_seconds  # of the last step
        self._last_prompt: tuple[tuple[int, ...], Logits] | None = None  # with the logits of the token after it

    @property
    def active(self) -> list[Request]:
        """The sequences that are not over."""
        return [sequence for sequence in self._sequences if sequence.finish_reason is None]

    @property
    def has_room(self) -> bool:
        """Whether another sequence can begin."""
        return len(self.active) < self._runner.n_rows

    def admit(self, sequence: Request) -> Job[PrefillOutput]:
        """Feed a prompt, but for what the cache holds of it, and draw the first token.

        Raises TokenIdError where the prompt has a token without an embedding, NonFiniteLogitsError unless failures are
        isolated.
        """
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
            self._draw(logits, [sequence])
        self._clear_failures()
        if self._speculation is not None and sequence.finish_reason is None:
            self._speculation.begin(self._runner, row, prompt)
        yield Measured("first token", 1, drawing.seconds)
        return PrefillOutput(len(prompt) - n_reused, n_reused, watch.seconds, drawing.seconds)

    def step(self, most: int = _MOST_AHEAD) -> Job[StepOutput]:
        """At least one more token for each active sequence, until one is over; at most so many where none is drafted.

        A round of speculation gives what was accepted and one more, and a model that chooses by itself goes on a while.
        Raises NonFiniteLogitsError unless failures are isolated.
        """
        watch = Stopwatch(self._runner.model.device)
        with watch:
            self._retire()
            advanced = list(self._sequences)
            draft_lengths = (
                self._speculation.draft_lengths(self._runner, advanced) if self._speculation is not None else []
            )
            output = None
            if self._speculation is not None and any(draft_lengths):
                output = self._speculation.run(self._runner, advanced, draft_lengths)
                most = MAX_UNDRAFTED
                self._try_again(advanced)
            if output is None:
                output = self._plain(advanced, most)
        self._clear_failures()
        if self._speculation is not None and not output.stats.n_rounds:
            self._speculation.record_steps(output.counts, watch.seconds)
        stats = output.stats
        yield Measured("decode", sum(output.counts), watch.seconds, len(advanced), stats.n_rounds, stats.n_accepted)
        return StepOutput(advanced, output.counts, watch.seconds, output.n_bytes)

    def _plain(self, advanced: list[Request], most: int) -> RoundOutput:
        """Steps without a draft."""
        watch = Stopwatch(self._runner.model.device)
        with watch:
            n_steps = self._run_ahead(advanced, most)
            if not n_steps:
                n_steps = 1
                logits = self._runner.step([sequence.generated[-1] for sequence in advanced])
                self._draw(logits, advanced)
        self._step_seconds = watch.seconds / n_steps
        n_rows = len(advanced)
        n_bytes = sum(self._runner.step_bytes(n_rows, -step) for step in range(1, n_steps + 1))
        return RoundOutput([n_steps] * n_rows, n_bytes)

    def _run_ahead(self, advanced: list[Request], most: int) -> int:
        """Let the model choose tokens by itself where it can; how many steps that were, none where it cannot."""
        draws = [sequence.next_draw for sequence in advanced]
        samplings = [sequence.sampler.sampling for sequence in advanced]
        if not (self._runner.runs_ahead and all(sequence.wants_tokens_alone for sequence in advanced)):
            return 0
        affordable = max(1, int(AHEAD_SECONDS / self._step_seconds))
        n_steps = min(most, _MOST_AHEAD, affordable, *(sequence.n_left for sequence in advanced))
        uniforms = [[draw.uniform(step) for draw in draws] for step in range(n_steps)]
        stops = frozenset().union(*(sequence.limits.stop_ids for sequence in advanced))
        chosen = self._runner.run_ahead([[draw.generated[-1]] for draw in draws], samplings, uniforms, stops)
        for tokens in chosen.tokens:
            for sequence, token in zip(advanced, tokens, strict=True):
                self._give(sequence, token)
        return len(chosen.tokens)

    def _recall(self, row: int, prompt: tuple[int, ...]) -> tuple[Logits | None, int]:
        """Begin a row with what the cache holds of a prompt; the logits after it, where they are known."""
        if self._last_prompt is not None and self._last_prompt[0] == prompt:
            n_reused = self._runner.reuse_prefix(row, prompt)
            if n_reused == len(prompt):
                return self._last_prompt[1], n_reused
        # at least one token must be fed to know what comes after
        return None, self._runner.reuse_prefix(row, prompt[:-1])

    def _draw(self, logits: Logits, sequences: Tokens[Request]) -> None:
        with phase("sample"), self._runner.alone():
            tokens = draw_tokens(logits, [sequence.next_draw for sequence in sequences])
        for row, (sequence, token) in enumerate(zip(sequences, tokens, strict=True)):
            self._give(sequence, token)
            if sequence.n_logprobs is not None and len(sequence.generated) > len(sequence.logprobs):
                sequence.logprobs.append(token_logprobs(logits.whole[row], token, sequence.n_logprobs))

    def _try_again(self, advanced: list[Request]) -> None:
        """Let sequences that failed in a round have their next token without a draft, from an empty row.

        A drafted token that the model has NaN for spoils the logits before it too, as 0 times NaN is NaN.
        """
        for row, sequence in enumerate(advanced):
            if sequence.failure is None:
                continue
            sequence.finish_reason = sequence.failure = None
            self._runner.wipe(row)
            text = (*sequence.prompt, *sequence.generated)
            for first in range(0, len(text), PREFILL_CHUNK):
                logits = self._runner.prefill(row, text[first : first + PREFILL_CHUNK])
            self._draw(logits, [sequence])

    def _give(self, sequence: Request, token: int) -> None:
        """Let a sequence go on with a token, or fail where it is none."""
        model = self._runner.model
        if token < model.config.vocab_size:
            sequence.take(token)
        else:
            sequence.fail(NonFiniteLogitsError(model.dtype, f"after {sequence.n_tokens:,} tokens"))

    def _clear_failures(self) -> None:
        """Empty the rows of sequences that have failed; raise a failure unless they are isolated."""
        failed = [(row, each.failure) for row, each in enumerate(self._sequences) if each.failure is not None]
        for row, _ in failed:
            self._runner.wipe(row)
        if failed and not self._isolates_failures:
            raise failed[0][1]

    def _retire(self) -> None:
        """Give the rows of sequences that are over to the last ones, so that the active ones have the first rows."""
        for row in reversed(range(len(self._sequences))):
            if self._sequences[row].finish_reason is not None:
                last = self._sequences.pop()
                if row < len(self._sequences):
                    self._runner.move(len(self._sequences), row)
                    if self._speculation is not None:
                        self._speculation.move(len(self._sequences), row)
                    self._sequences[row] = last
