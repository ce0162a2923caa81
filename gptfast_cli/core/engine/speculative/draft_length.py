"""The draft length k of each round: fixed, or adapted so that speculation never costs more than it gains.

Expected tokens of a round with draft length k, where each drafted token is accepted with probability a (Leviathan et
al. 2023, arXiv:2211.17192; slightly optimistic where easy and hard stretches alternate):

    tau(k) = (1 - a^(k + 1)) / (1 - a)

A draft that reports its confidence p lets a round end early. The uncertainty of a drafted token is 1 - p; a measured
factor f = rejections / sum(1 - p) calibrates it: a requantized copy of the target is often unsure and right, another
draft sure and wrong. All tokens so far are accepted with probability about exp(-f * sum(1 - p)); one more token pays
while this exceeds its cost in seconds times the tokens per second of the rounds.

A trial has a cost: the draft must be fed the tokens that were decoded without it, its first rounds are slow, and it may
lose. The loss against plain steps is accumulated, and a trial starts only where that loss plus its estimated cost
is at most 2 % of the plain decoding time of the tokens so far and the next 400.
"""

import math
import statistics
from collections import deque
from dataclasses import asdict, dataclass
from typing import Final, Protocol

from gptfast_cli.core.errors import UsageError
from gptfast_cli.core.models.process_group import ProcessGroup

ADAPTIVE: Final = "auto"
ADVISED: Final = "auto"
DEFAULT_DRAFT_LENGTH: Final = 5


@dataclass(frozen=True, slots=True)
class DraftOptions:
    """What `--draft` and `--speculate-k` ask for.

    draft:                MODEL, `self:SCHEME`, `ngram`, or `auto`: the saved advice of `gptfast speculate`
    draft_length:         tokens drafted in a round (k); None adapts it
    has_own_draft_length: with `auto`, `draft_length` replaces the k of the advice
    """

    draft: str
    draft_length: int | None = DEFAULT_DRAFT_LENGTH
    has_own_draft_length: bool = True


@dataclass(frozen=True, slots=True)
class DraftedTexts:
    """The sequences to draft for: batch size, maximum tokens of each with its prompt, and sampling temperature."""

    n_rows: int
    n_tokens: int
    temperature: float


def parse_draft_length(text: str) -> int | None:
    """Parse `--speculate-k`: a number, or `auto` as None. Raises UsageError."""
    if text == ADAPTIVE:
        return None
    if not text.isdecimal():
        raise UsageError(f"--speculate-k must be 0 or more, or {ADAPTIVE}, not {text!r}.")
    return int(text)


MAX_DRAFT_LENGTH = 16
"""Largest draft length that the adaptive policy considers."""

MAX_ROUNDS = 32
"""Maximum number of rounds between two calls of a policy."""

_FIRST = 3  # draft length of a trial
_TRIED = 3  # measurements of a trial's rounds, or of plain steps, before they are used
_CATCHES_UP = _TRIED + 1  # rounds of a trial: the first also feeds the draft the tokens decoded without it
_OF_A_TRY = 5  # weight of a trial's acceptance
_GAIN = 1.03  # required speed-up over plain steps, and of an untried draft length over the best tried one
_RETIMED, _LONGEST_RETIMED = 128, 1024  # tokens from rounds until a plain step is timed again; doubles each time
_PROMISE = 1.1  # required predicted speed-up of an untried draft length over plain steps
# plain tokens between trials of a draft that does not pay: first, growth factor, maximum
_PAUSE, _GROWTH, _LONGEST_PAUSE = 32, 4, 4096
_RISK, _NEXT = 0.02, 400  # share of the plain decoding time that trials may lose; future tokens that count
_VERIFY = 1.2  # first guess: time of a verification, in plain steps
_CATCH_UP = 0.2  # first guess: time to feed the draft one of many tokens, in draft steps


@dataclass(frozen=True, slots=True)
class RoundPlan:
    """What to run next.

    draft_length:    tokens to draft in each round; 0 is a plain step
    n_rounds:        rounds after which to ask the policy again
    max_uncertainty: stop drafting once sum(1 - p) exceeds this; inf = fixed length
    """

    draft_length: int
    n_rounds: int
    max_uncertainty: float = math.inf


@dataclass(frozen=True, slots=True)
class InitialEstimate:
    """Estimates that do not need timing.

    n_left:       maximum number of tokens still to decode
    draft_share:  bytes read per drafted token / bytes read per plain step
    host_seconds: time of a trial's round outside of the models
    """

    n_left: float = math.inf
    draft_share: float = 0.0
    host_seconds: float = 0.0


@dataclass(slots=True)
class RoundStats:
    """Totals of several rounds; a round counts once for each sequence.

    n_verified:  drafted tokens up to and including the first rejected one of each round
    n_accepted:  drafted tokens that were accepted
    uncertainty: sum of 1 - p over the verified tokens; 0 where the draft does not report p
    n_sequences: batch size
    """

    n_rounds: int = 0
    n_drafted: int = 0
    n_verified: int = 0
    n_accepted: int = 0
    uncertainty: float = 0.0
    n_sequences: int = 1


class DraftLengthPolicy(Protocol):
    """Chooses the draft length of the next rounds from the timings of the previous ones."""

    def next(self, initial: InitialEstimate) -> RoundPlan:
        """Return the next plan."""
        ...

    def record_steps(self, n_tokens: int, seconds: float) -> None:
        """Record plain steps that gave each sequence `n_tokens` tokens in `seconds`."""
        ...

    def record_rounds(self, draft_length: int, seconds: float, stats: RoundStats, *, once: float = 0.0) -> None:
        """Record rounds of the whole batch, planned with `draft_length`.

        seconds: time of one round
        once:    time of the call beside its rounds, which more rounds in a call would share
        """
        ...


class FixedDraftLength:
    """A constant draft length, without early ends."""

    def __init__(self, draft_length: int) -> None:
        self._plan = RoundPlan(draft_length, n_rounds=MAX_ROUNDS)

    def next(self, initial: InitialEstimate) -> RoundPlan:  # noqa: ARG002  # nothing changes it
        return self._plan

    def record_steps(self, n_tokens: int, seconds: float) -> None:
        pass

    def record_rounds(self, draft_length: int, seconds: float, stats: RoundStats, *, once: float = 0.0) -> None:
        pass


class BroadcastDraftLength:
    """The plan of rank 0 on all ranks, because each rank's own timings differ."""

    def __init__(self, own: DraftLengthPolicy, group: ProcessGroup) -> None:
        self._own, self._group = own, group

    def next(self, initial: InitialEstimate) -> RoundPlan:
        return RoundPlan(**self._group.broadcast(asdict(self._own.next(initial))))

    def record_steps(self, n_tokens: int, seconds: float) -> None:
        self._own.record_steps(n_tokens, seconds)

    def record_rounds(self, draft_length: int, seconds: float, stats: RoundStats, *, once: float = 0.0) -> None:
        self._own.record_rounds(draft_length, seconds, stats, once=once)


class AdaptiveDraftLength:
    """The draft length with the most tokens per second, by the costs and the acceptance measured so far."""

    def __init__(self) -> None:
        self._pause = _PAUSE
        self._left = 0  # plain tokens until the next trial
        self._to_try = _CATCHES_UP  # rounds left of the current trial
        self._n_rounds = _TRIED  # of the next plan: few at first, because a trial is a small sample
        self._n_all, self._n_behind = 0, 0  # tokens of a sequence; its last tokens that the draft has not been fed
        self._lost = 0.0  # seconds lost against plain steps, minus seconds gained since
        self._n_tokens, self._retimed = (
            0,
            _RETIMED,
        )  # tokens from rounds since the last timed plain step; threshold for the next
        self._step = _Cost()  # seconds of a plain step
        self._catch_up = _Cost()  # seconds to feed the draft a token
        self._costs: dict[int, _Cost] = {}  # by draft length: (seconds of a round - plain step) / drafted token
        # priors that weigh as much as a few measurements
        self._accepted = _Mean(0.98, 0.7, weight=6)  # accepted share of verified tokens
        self._yield_ratio = _Mean(0.95, 1.0, weight=10)  # tokens of a round / tokens expected of it
        self._rejected = _Mean(0.995, 0.3, weight=6)  # rejected share of tokens with a reported p
        self._mean_uncertainty = _Mean(0.995, 0.6, weight=6)  # mean of 1 - p of these

    def next(self, initial: InitialEstimate) -> RoundPlan:
        if not self._step.is_known or self._left > 0:
            return RoundPlan(0, 1)
        if self._to_try == _CATCHES_UP:
            return RoundPlan(_FIRST, 1) if self._may_try(initial) else RoundPlan(0, 1)
        if self._to_try > 0:
            return RoundPlan(_FIRST, self._to_try)
        tried = max(self._costs, key=self._speed)
        best = max(range(1, MAX_DRAFT_LENGTH + 1), key=self._speed)
        is_promising = self._speed(best) > max(_GAIN * self._speed(tried), _PROMISE / self._step.value)
        draft_length = best if is_promising else tried
        if self._speed(draft_length) * self._step.value > (_GAIN if self._n_rounds == _TRIED else 1):
            self._pause = _PAUSE
            return RoundPlan(draft_length, self._n_rounds, self._max_uncertainty(draft_length))
        # try again later: the text may become easier to draft
        self._left, self._pause = self._pause, min(_GROWTH * self._pause, _LONGEST_PAUSE)
        self._n_rounds = _TRIED
        return RoundPlan(0, 1)

    def record_steps(self, n_tokens: int, seconds: float) -> None:
        self._n_all += n_tokens
        self._n_behind += n_tokens
        if 0 < self._left <= n_tokens:
            self._to_try = _CATCHES_UP
        self._left = max(0, self._left - n_tokens)
        self._step.add(seconds / n_tokens)

    def record_rounds(self, draft_length: int, seconds: float, stats: RoundStats, *, once: float = 0.0) -> None:
        n_rounds, n_verified, n_accepted = stats.n_rounds, stats.n_verified, stats.n_accepted
        n_drafted = stats.n_drafted / n_rounds or draft_length  # an empty proposal costs time, too
        self._count_loss(draft_length, n_drafted, seconds, stats, once)
        # an empty proposal counts as one rejected token
        weight = max(n_verified, 1) * (_OF_A_TRY if self._to_try > 0 else 1)
        expected = self._tokens(n_drafted)
        self._accepted.add(n_accepted / n_verified if n_verified else 0.0, weight)
        self._yield_ratio.add((n_accepted / n_rounds + 1) / expected, n_rounds / stats.n_sequences)
        if stats.uncertainty > 0:
            self._rejected.add(1 - n_accepted / n_verified, n_verified)
            self._mean_uncertainty.add(stats.uncertainty / n_verified, n_verified)
        self._add_cost(draft_length, n_drafted, seconds, n_rounds)
        self._n_behind = 0
        self._n_tokens += n_accepted + n_rounds
        if self._n_tokens > self._retimed:
            self._n_tokens, self._retimed = 0, min(2 * self._retimed, _LONGEST_RETIMED)
            self._step.renew()

    def _count_loss(self, draft_length: int, n_drafted: float, seconds: float, stats: RoundStats, once: float) -> None:
        """Update the loss: seconds of the rounds minus seconds of plain steps for the same tokens."""
        n_rounds = stats.n_rounds / stats.n_sequences
        n_tokens = n_rounds + stats.n_accepted / stats.n_sequences
        # cap outliers, which have other causes than the draft
        if self._costs and self._to_try != _CATCHES_UP:
            most = 1.5 * (self._step.value + n_drafted * self._token_cost(draft_length))
        else:
            most = self._step.value * (n_drafted + _VERIFY + self._n_behind / n_rounds)
        self._lost = max(0.0, self._lost + min(seconds, most) * n_rounds + once - n_tokens * self._step.value)
        self._n_all += round(n_tokens)

    def _add_cost(self, draft_length: int, n_drafted: float, seconds: float, n_rounds: int) -> None:
        """Update the cost of a drafted token or, in the first round of a trial, of feeding the draft."""
        if self._to_try == _CATCHES_UP:
            self._to_try = _TRIED
            if self._costs and self._n_behind:
                rest = seconds - self._step.value - n_drafted * self._token_cost(draft_length)
                self._catch_up.add(max(0.0, rest) / self._n_behind)
            return
        self._costs.setdefault(draft_length, _Cost()).add((seconds - self._step.value) / n_drafted)
        self._n_rounds = min(2 * self._n_rounds, MAX_ROUNDS) if self._to_try == 0 else _TRIED
        self._to_try = max(0, self._to_try - n_rounds)

    def _may_try(self, initial: InitialEstimate) -> bool:
        """Whether past loss + estimated cost of a trial <= _RISK * plain decoding time."""
        step, draft_step = self._step.value, initial.draft_share * self._step.value
        drafting = _FIRST * self._token_cost(_FIRST) if self._costs else (_VERIFY - 1) * step + _FIRST * draft_step
        each = step + drafting + initial.host_seconds - self._least_tokens() * step
        catching_up = self._n_behind * (self._catch_up.value if self._catch_up.is_begun else _CATCH_UP * draft_step)
        n_tokens = self._n_all + min(initial.n_left, _NEXT)
        return self._lost + _CATCHES_UP * each + catching_up <= _RISK * n_tokens * step

    def _least_tokens(self) -> float:
        """Expected tokens of a trial's round; before the first trial with a cautious acceptance of 0.5."""
        return self._yield_ratio.value * self._tokens(_FIRST) if self._costs else (1 - 0.5 ** (_FIRST + 1)) / (1 - 0.5)

    def _tokens(self, draft_length: float) -> float:
        """tau(k), with the same acceptance probability for every token."""
        accepted = min(self._accepted.value, 1 - 1e-9)
        return (1 - math.pow(accepted, draft_length + 1)) / (1 - accepted)

    def _token_cost(self, draft_length: int) -> float:
        """Seconds of a drafted token at this draft length, or at the nearest measured one."""
        nearest = min(self._costs, key=lambda tried: abs(tried - draft_length))
        return max(self._costs[nearest].value, 0.0)

    def _speed(self, draft_length: int) -> float:
        """Expected tokens per second of rounds with this draft length."""
        return (
            self._yield_ratio.value
            * self._tokens(draft_length)
            / (self._step.value + draft_length * self._token_cost(draft_length))
        )

    def _max_uncertainty(self, draft_length: int) -> float:
        """sum(1 - p) above which one more drafted token does not pay."""
        least_prob = self._token_cost(draft_length) * self._speed(draft_length)  # minimum P(accepted) that pays
        return (
            max(0.0, -math.log(max(least_prob, 1e-9))) * self._mean_uncertainty.value / max(self._rejected.value, 1e-9)
        )


class _Mean:
    """Exponentially weighted mean of a stream; the first values are averaged with equal weights."""

    def __init__(self, memory: float, value: float = 0.0, *, weight: float = 0.0) -> None:
        self.value = value
        self._memory = memory  # weight of the past after each new value
        self._weight = weight

    def add(self, number: float, weight: float = 1) -> None:
        self._weight = self._weight * self._memory**weight + weight
        self.value += (number - self.value) * weight / self._weight


class _Cost:
    """Median of the last seven timings, robust against outliers."""

    def __init__(self) -> None:
        self.value = math.nan
        self._last: deque[float] = deque(maxlen=7)
        self._is_old = False

    @property
    def is_begun(self) -> bool:
        """Whether there is any timing."""
        return bool(self._last)

    @property
    def is_known(self) -> bool:
        """Whether there are enough timings since the last `renew`."""
        return len(self._last) >= _TRIED and not self._is_old

    def add(self, seconds: float) -> None:
        while self._is_old and len(self._last) >= _TRIED:  # give the next timings more weight
            self._last.popleft()
        self._is_old = False
        self._last.append(seconds)
        self.value = statistics.median(self._last)

    def renew(self) -> None:
        """Mark the timings as old."""
        self._is_old = True
