"""One sequence under way: its prompt, how its tokens are drawn, when it is over, and what came out so far."""

from dataclasses import dataclass, field
from typing import Literal

from gptfast_cli.core.decode.logprobs import TokenLogprobs
from gptfast_cli.core.decode.sampler import Draw, Sampler
from gptfast_cli.core.errors import GptFastError, UsageError

FinishReason = Literal["stop", "eos", "length", "interrupted", "error"]


@dataclass(frozen=True, slots=True)
class Limits:
    """When a sequence is over.

    max_context:    most tokens, prompt and generated ones together
    longest:        what --max-context can raise that to; None where that is not known
    stop_ids:       tokens that end it
    named_stop_ids: those of them that a person named as stop strings
    """

    max_new_tokens: int
    max_context: int
    stop_ids: frozenset[int]
    named_stop_ids: frozenset[int] = frozenset()
    longest: int | None = None

    def most_tokens(self, n_prompt: int) -> int:
        """Tokens that a sequence with a prompt of this length can come to, the prompt included."""
        return min(n_prompt + self.max_new_tokens, self.max_context)

    def check_prompt(self, n_tokens: int) -> None:
        """Raise UsageError where a prompt of `n_tokens` leaves no room for an answer."""
        if n_tokens >= self.max_context:
            raise UsageError(
                f"The prompt has {n_tokens} tokens, and the context holds {self.max_context}, the answer included.",
                f"Shorten the prompt, or {self.more_room}.",
            )

    @property
    def more_room(self) -> str:
        """What gives a prompt more room."""
        if self.longest is None or self.longest <= self.max_context:
            return "take a model with a longer context"
        return f"raise --max-context, up to {self.longest}"


@dataclass(slots=True)
class Sequence:
    """A prompt and its continuation; `id` names it in results. It is over once it has a finish reason."""

    id: int
    prompt: tuple[int, ...]
    sampler: Sampler
    limits: Limits
    n_logprobs: int | None = None  # alternatives to keep for each token; None keeps no log-probabilities at all
    generated: list[int] = field(default_factory=list)  # without the end token
    logprobs: list[TokenLogprobs] = field(default_factory=list)  # of the generated tokens
    finish_reason: FinishReason | None = None
    failure: GptFastError | None = None  # why it ended with "error"

    @property
    def next_draw(self) -> Draw:
        """What decides the next token."""
        return Draw(self.sampler, self.prompt, self.generated)

    @property
    def wants_tokens_alone(self) -> bool:
        """Whether a model that chooses by itself can give all of it: no log-probabilities, and no memory of tokens."""
        return self.n_logprobs is None and self.sampler.sampling.repetition_penalty == 1

    @property
    def n_tokens(self) -> int:
        """Tokens of the prompt and generated ones."""
        return len(self.prompt) + len(self.generated)

    @property
    def n_left(self) -> int:
        """Tokens that may still come."""
        return self.limits.most_tokens(len(self.prompt)) - self.n_tokens

    def fail(self, failure: GptFastError) -> None:
        """End without a next token."""
        self.finish_reason, self.failure = "error", failure

    def take(self, token: int) -> None:
        """Go on with a token, which may end the sequence."""
        if token in self.limits.stop_ids:
            self.finish_reason = "stop" if token in self.limits.named_stop_ids else "eos"
            return
        self.generated.append(token)
        if self.n_left <= 0:
            self.finish_reason = "length"
