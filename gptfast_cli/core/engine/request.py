"""A request: prompt, sampler, limits and generated tokens; stop strings; and the text of the tokens.

The text ends before the stop string that is complete first, character by character; of several that end at the same
character, before the longest. So of the stops "aXb" and "X", "X" matches in "aXb"; of "ab" and "b", "ab" in "ab". The
tokenization makes no difference.

A stop string that is a special token matches the token itself, which has no text.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from gptfast_cli.core.engine.reasoning import Piece, ReasoningParser
from gptfast_cli.core.engine.sampling import Sampler, SamplingContext, SeenTokens, TokenLogprobs
from gptfast_cli.core.errors import GptFastError, UsageError
from gptfast_cli.core.events import Finished, TextChunk
from gptfast_cli.core.tokenizers import Tokenizer

FinishReason = Literal["stop", "eos", "length", "interrupted", "error"]


@dataclass(frozen=True, slots=True)
class Limits:
    """When a request is finished.

    max_context:    maximum number of tokens, prompt included
    longest:        upper limit of --max-context; None: not known
    stop_ids:       end tokens
    named_stop_ids: end tokens that --stop names
    """

    max_new_tokens: int
    max_context: int
    stop_ids: frozenset[int]
    named_stop_ids: frozenset[int] = frozenset()
    longest: int | None = None

    def most_tokens(self, n_prompt: int) -> int:
        """Maximum length of a request with a prompt of this length, prompt included, in tokens."""
        return min(n_prompt + self.max_new_tokens, self.max_context)

    def check_prompt(self, n_tokens: int) -> None:
        """Raise UsageError if a prompt of `n_tokens` leaves no room for an answer."""
        if n_tokens >= self.max_context:
            raise UsageError(
                f"The prompt has {n_tokens} tokens, and the context holds {self.max_context}, the answer included.",
                f"Shorten the prompt, or {self.more_room}.",
            )

    @property
    def more_room(self) -> str:
        """Advice how to get a longer context."""
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
    n_logprobs: int | None = None  # alternatives kept for each token; None: no log-probabilities
    generated: list[int] = field(default_factory=list)  # without the end token
    logprobs: list[TokenLogprobs] = field(default_factory=list)  # of the generated tokens
    finish_reason: FinishReason | None = None
    failure: GptFastError | None = None  # why it ended with "error"
    seen: SeenTokens = field(default_factory=SeenTokens, init=False, repr=False)

    @property
    def next_draw(self) -> SamplingContext:
        """The sampler of the next token, and the tokens before it."""
        return SamplingContext(self.sampler, self.prompt, self.generated, self.seen)

    @property
    def wants_tokens_alone(self) -> bool:
        """Whether a model can sample for it without the host: no log-probabilities."""
        return self.n_logprobs is None

    @property
    def n_tokens(self) -> int:
        """Tokens so far, prompt included."""
        return len(self.prompt) + len(self.generated)

    @property
    def n_left(self) -> int:
        """Maximum number of further tokens."""
        return self.limits.most_tokens(len(self.prompt)) - self.n_tokens

    def fail(self, failure: GptFastError) -> None:
        """End with a failure."""
        self.finish_reason, self.failure = "error", failure

    def take(self, token: int) -> None:
        """Append a token, which may end the request."""
        if token in self.limits.stop_ids:
            self.finish_reason = "stop" if token in self.limits.named_stop_ids else "eos"
            return
        self.generated.append(token)
        if self.n_left <= 0:
            self.finish_reason = "length"


class StopStrings:
    """Filters a stream of text: holds back what may be the beginning of a stop string, and ends at the first one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.found = False

    def push(self, text: str) -> str:
        """Add text; returns the text that can be shown, none after a stop string was `found`."""
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
        """The text that is still held back, at the end of the stream."""
        shown, self._held = self._held, ""
        return shown

    def _start_of_first(self) -> int | None:
        """Start of the stop string that is complete first, or None."""
        found = ((start, stop) for stop in self._stops if (start := self._held.find(stop)) >= 0)
        return min(((start + len(stop), start) for start, stop in found), default=(0, None))[1]

    def _undecided(self) -> int:
        """Length of the longest suffix of the held text that is a prefix of a stop string."""
        longest = max(map(len, self._stops), default=0)
        lengths = range(min(longest - 1, len(self._held)), 0, -1)
        return next((n for n in lengths if any(stop.startswith(self._held[-n:]) for stop in self._stops)), 0)


def stop_token_ids(stops: Sequence[str], tokenizer: Tokenizer | None) -> frozenset[int]:
    """The ids of the stop strings that are written as special or added tokens."""
    if tokenizer is None:
        return frozenset()
    added = tokenizer.vocabulary.added_tokens
    return frozenset(added[stop] for stop in stops if stop in added)


def unmatched_stops(stops: Sequence[str], tokenizer: Tokenizer | None, option: str = "--stop") -> Iterator[str]:
    """A sentence for each stop string that can never match with this tokenizer, with the reason.

    option: the option or the row's field that contains them
    """
    for stop in dict.fromkeys(stops):
        if (why := _why_unmatched(stop, stops, tokenizer)) is not None:
            yield f"{option} {stop!r} can never match: {why}."


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
    """The text of a request, token by token; empty without a tokenizer."""

    def __init__(
        self,
        request: Request,
        tokenizer: Tokenizer | None,
        stops: Sequence[str],
        reasoning: ReasoningParser | None = None,
    ) -> None:
        """`reasoning`: tells the reasoning of the text apart; None: all of the text is the answer."""
        self.request = request
        self.text = ""
        self.reasoning = reasoning
        self._stops = StopStrings(stops)
        self._n_read = 0
        self._is_announced = False  # Finished has been yielded
        self._stream = None if tokenizer is None else tokenizer.stream(after=request.prompt)

    def read(self) -> list[Piece]:
        """The new text, except what may become a stop string or a delimiter; all of it once the request is finished.

        A complete stop string ends the request.
        """
        if self._stream is None:
            return []
        text = ""
        for token in self.request.generated[self._n_read :]:
            self._n_read += 1
            mark = "" if self.reasoning is None else self.reasoning.mark(token)
            text += self._stops.push(self._stream.push(token) + mark)
            if self._stops.found:
                del self.request.generated[self._n_read :]  # generated after the stop string, in the same call
                break
        if self.request.finish_reason is not None and not self._stops.found:
            text += self._stops.push(self._stream.finish())
            text += self._stops.finish()
            self._stream = None  # at its end
        if self._stops.found:
            self.request.finish_reason = "stop"
        return self._take(text)

    def _take(self, text: str) -> list[Piece]:
        """Append the text without what may be a delimiter; returns its pieces."""
        pieces = [Piece(text)] if text else []
        if self.reasoning is not None:
            pieces = self.reasoning.push(text)
            if self.request.finish_reason is not None:
                pieces += self.reasoning.finish()
        self.text += "".join(piece.text for piece in pieces)
        return pieces

    def follow(self) -> Iterator[TextChunk | Finished]:
        """Events for new text, and for the end of the request."""
        for piece in self.read():
            yield TextChunk(self.request.id, piece.text, piece.is_reasoning)
        if self.request.finish_reason is not None and not self._is_announced:
            self._is_announced = True
            yield Finished(self.request.id)

    def interrupt(self) -> Iterator[TextChunk | Finished]:
        """End the request, unless it is finished; yields the events of `follow`."""
        self.request.finish_reason = self.request.finish_reason or "interrupted"
        yield from self.follow()
