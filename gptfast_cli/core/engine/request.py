"""A sequence that is being generated: its limits, stop strings, and the text that its tokens become.

Read character by character, the stop string that is complete first ends the text. Of several that end with the same
character the longest counts. So of the stops "aXb" and "X" it is "X" that ends "aXb", and of "ab" and "b" it is "ab":
whether tokens are "a", "X", "b" or "aXb" makes no difference, as nothing behind the end of a stop is looked at.

A special token has no text, so a stop string that is written as one ends the text at the token itself.
"""

from collections.abc import Iterator, Sequence
from collections.abc import Sequence as Texts
from dataclasses import dataclass, field
from typing import Literal

from gptfast_cli.core.engine.sampling import Sampler, SamplingContext, TokenLogprobs
from gptfast_cli.core.errors import GptFastError, UsageError
from gptfast_cli.core.events import Finished, TextChunk
from gptfast_cli.core.tokenizers import Tokenizer

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


@dataclass(slots=True, eq=False)
class Request:
    """A prompt and its continuation; `id` names it in results. It is finished once it has a finish reason."""

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
    def next_draw(self) -> SamplingContext:
        """What decides the next token."""
        return SamplingContext(self.sampler, self.prompt, self.generated)

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


class StopStrings:
    """Passes text through piece by piece, holding back what may turn out to be the beginning of a stop string."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.found = False

    def push(self, text: str) -> str:
        """Take the next piece; return what is certain to be output. Once `found`, that is nothing more."""
        if self.found:
            return ""
        self._held += text
        if (start := self._start_of_first()) is not None:
            self.found = True
            shown, self._held = self._held[:start], ""
            return shown
        certain = len(self._held) - self._undecided()
        shown, self._held = self._held[:certain], self._held[certain:]
        return shown

    def finish(self) -> str:
        """What is still held when no more text comes."""
        shown, self._held = self._held, ""
        return shown

    def _start_of_first(self) -> int | None:
        """Where the stop string begins that is complete first."""
        found = ((start, stop) for stop in self._stops if (start := self._held.find(stop)) >= 0)
        return min(((start + len(stop), start) for start, stop in found), default=(0, None))[1]

    def _undecided(self) -> int:
        """Length of the longest ending of the held text with which a stop string begins."""
        longest = max(map(len, self._stops), default=0)
        lengths = range(min(longest - 1, len(self._held)), 0, -1)
        return next((n for n in lengths if any(stop.startswith(self._held[-n:]) for stop in self._stops)), 0)


def stop_token_ids(stops: Sequence[str], tokenizer: Tokenizer | None) -> frozenset[int]:
    """The ids of the stop strings that are written as special or added tokens."""
    if tokenizer is None:
        return frozenset()
    added = tokenizer.vocabulary.added_tokens
    return frozenset(added[stop] for stop in stops if stop in added)


def unmatched_stops(stops: Sequence[str], tokenizer: Tokenizer | None, given_as: str = "--stop") -> Iterator[str]:
    """A sentence for each stop string that cannot end an answer of a model with this tokenizer, saying why.

    given_as: the option, or the field of a row, that names them
    """
    for stop in dict.fromkeys(stops):
        if (why := _why_unmatched(stop, stops, tokenizer)) is not None:
            yield f"{given_as} {stop!r} can never match: {why}."


def _why_unmatched(stop: str, stops: Sequence[str], tokenizer: Tokenizer | None) -> str | None:
    if tokenizer is None:
        return "the model has no tokenizer, so there is no text to look in"
    if not _is_unicode(stop):
        return "it is not valid Unicode"
    added = tokenizer.vocabulary.added_tokens
    if stop in added:
        return None
    if (earlier := next((other for other in stops if other in stop[:-1]), None)) is not None:
        return f"{earlier!r}, another stop string, is complete before it"
    special = next(
        (text for text, token_id in added.items() if text in stop and not tokenizer.decode([token_id])), None
    )
    if special is not None:
        return f"the special token {special!r} has no text; to stop at the token itself, give it alone"
    return None


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class Transcript:
    """Follows a sequence; without a tokenizer its text stays empty."""

    def __init__(self, sequence: Request, tokenizer: Tokenizer | None, stops: Texts[str]) -> None:
        self.sequence = sequence
        self.text = ""
        self._stops = StopStrings(stops)
        self._n_read = 0
        self._is_told = False  # that the sequence is over
        self._stream = None if tokenizer is None else tokenizer.stream(after=sequence.prompt)

    def read(self) -> str:
        """The text of the tokens generated since the last call; all of it once the sequence is over.

        A stop string that completes ends the sequence.
        """
        if self._stream is None:
            return ""
        text = ""
        for token in self.sequence.generated[self._n_read :]:
            self._n_read += 1
            text += self._stops.push(self._stream.push(token))
            if self._stops.found:
                del self.sequence.generated[self._n_read :]  # as if they had been looked at one by one
                break
        if self.sequence.finish_reason is not None and not self._stops.found:
            text += self._stops.push(self._stream.finish())
            text += self._stops.finish()
            self._stream = None  # at its end
        if self._stops.found:
            self.sequence.finish_reason = "stop"
        self.text += text
        return text

    def follow(self) -> Iterator[TextChunk | Finished]:
        """What is new in the text, and once that the sequence is over."""
        if text := self.read():
            yield TextChunk(self.sequence.id, text)
        if self.sequence.finish_reason is not None and not self._is_told:
            self._is_told = True
            yield Finished(self.sequence.id)

    def interrupt(self) -> Iterator[TextChunk | Finished]:
        """End the sequence where it stands, unless it is over; what `follow` gives for that."""
        self.sequence.finish_reason = self.sequence.finish_reason or "interrupted"
        yield from self.follow()
