"""The draft length k of each round: fixed, or adapted so that speculation never costs more than it gains.

A round of depth k gives (1 - a^(k+1)) / (1 - a) tokens where each drafted one is accepted with probability a (Leviathan
et al. 2023, arXiv:2211.17192): somewhat fewer where easy and hard stretches take turns.

A draft that says how sure it is lets each round end where a hard stretch begins. Its doubt about a token is 1 - its
probability of it; of all doubts a share f comes true, when the target rejects the token. All tokens so far stay with
probability exp(-f * their doubts), nearly, and one more pays while this is above its seconds times tokens a second.
f is measured, because a draft may doubt much and be right, as another form of the target itself is, or little and be
wrong.

To find out has its cost: the draft has to be fed the tokens that came without it, its first rounds are slow, and it may
lose. What is lost against plain steps is added up, and a trial begins only where that and what the trial may cost are
less than a small share of the time that plain decoding takes for the tokens so far and the next ones.
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
    """`draft` is a MODEL, `self:SCHEME`, `ngram`, or `auto` for what advice says; `draft_length` the tokens of a round.

    A depth of None takes as many as pay; with `auto`, advice has a depth too, unless `has_own_draft_length`.
    """

    draft: str
    draft_length: int | None = DEFAULT_DRAFT_LENGTH
    has_own_draft_length: bool = True


@dataclass(frozen=True, slots=True)
class DraftedTexts:
    """The texts that are to be drafted for: how many side by side, of how many tokens, drawn at which temperature."""

    n_rows: int
    n_tokens: int
    temperature: float


def parse_draft_length(text: str) -> int | None:
    """A depth as a person writes it: a number, or `auto` for None. Raises UsageError."""
    if text == ADAPTIVE:
        return None
    if not text.isdecimal():
        raise UsageError(f"--speculate-k must be 0 or more, or {ADAPTIVE}, not {text!r}.")
    return int(text)


MAX_DRAFT_LENGTH = 16
"""The deepest round that an adaptive depth considers."""

MAX_ROUNDS = 32
"""Rounds in a row, before a depth is asked again."""

_FIRST = 3  # tokens drafted while nothing is known
_TRIED = 3  # in a row, to see whether drafting pays, or what a plain step takes
_CATCHES_UP = _TRIED + 1  # one round before these, in which the draft is fed what came without it
_OF_A_TRY = 5  # times that its acceptance counts
_GAIN = 1.03  # by which a draft has to be faster than none, and a depth that was never tried than the best that was
_RETIMED, _LONGEST_RETIMED = 128, 1024  # tokens of rounds, until a plain step is timed again; doubled each time
_PROMISE = 1.1  # by which that depth has to look faster than none
# plain tokens between tries of a draft that does not pay, and how it grows
_PAUSE, _GROWTH, _LONGEST_PAUSE = 32, 4, 4096
_RISK, _NEXT = 0.02, 400  # of the time that plain steps take for the tokens so far and up to so many next ones
_VERIFY, _CATCH_UP = (
    1.2,
    0.5,
)  # that verifying takes, in steps, and a token fed to the draft, in its steps; first guesses


@dataclass(frozen=True, slots=True)
class RoundPlan:
    """Tokens to draft in a round, 0 for a plain step, and rounds after which to ask again.

    max_uncertainty: stop drafting once sum(1 - p) exceeds this; infinity: always draft `draft_length` tokens
    """

    draft_length: int
    n_rounds: int
    max_uncertainty: float = math.inf


@dataclass(frozen=True, slots=True)
class InitialEstimate:
    """What is known before anything is timed.

    n_left:        tokens that are still to come
    draft_share:   bytes that a drafted token reads, over those of a plain step
    host_seconds:  beside the models, for a round of a trial
    """

    n_left: float = math.inf
    draft_share: float = 0.0
    host_seconds: float = 0.0


@dataclass(slots=True)
class RoundStats:
    """What rounds came to, all together.

    n_rounds:   each of one sequence; n_verified: tokens that were looked at in them, as far as the first that did not
                stay; n_accepted: those that did
    uncertainty:      of the draft about the verified tokens, 0 where it was not asked
    """

    n_rounds: int = 0
    n_drafted: int = 0
    n_verified: int = 0
    n_accepted: int = 0
    uncertainty: float = 0.0
    n_sequences: int = 1


class DraftLengthPolicy(Protocol):
    """Says how deep rounds are to be, and is told how it went."""

    def next(self, initial: InitialEstimate) -> RoundPlan:
        """What to do next."""
        ...

    def record_steps(self, n_tokens: int, seconds: float) -> None:
        """Plain steps gave each sequence so many tokens."""
        ...

    def record_rounds(self, draft_length: int, seconds: float, stats: RoundStats, *, once: float = 0.0) -> None:
        """Rounds that were to be of that depth, of as many sequences side by side as it took each `seconds`.

        All together took `once` more, which longer runs of rounds would share.
        """
        ...


class FixedDraftLength:
    """See Depth; always the same, whatever the draft thinks of its tokens."""

    def __init__(self, draft_length: int) -> None:
        self._plan = RoundPlan(draft_length, n_rounds=MAX_ROUNDS)

    def next(self, initial: InitialEstimate) -> RoundPlan:  # noqa: ARG002  # nothing changes it
        """See DraftLengthPolicy."""
        return self._plan

    def record_steps(self, n_tokens: int, seconds: float) -> None:
        """See DraftLengthPolicy."""

    def record_rounds(self, draft_length: int, seconds: float, stats: RoundStats, *, once: float = 0.0) -> None:
        """See DraftLengthPolicy."""


class BroadcastDraftLength:
    """See Depth; that of rank 0, as ranks time their steps each for itself."""

    def __init__(self, own: DraftLengthPolicy, group: ProcessGroup) -> None:
        self._own, self._group = own, group

    def next(self, initial: InitialEstimate) -> RoundPlan:
        """See DraftLengthPolicy."""
        return RoundPlan(**self._group.broadcast(asdict(self._own.next(initial))))

    def record_steps(self, n_tokens: int, seconds: float) -> None:
        """See DraftLengthPolicy."""
        self._own.record_steps(n_tokens, seconds)

    def record_rounds(self, draft_length: int, seconds: float, stats: RoundStats, *, once: float = 0.0) -> None:
        """See DraftLengthPolicy."""
        self._own.record_rounds(draft_length, seconds, stats, once=once)


class AdaptiveDraftLength:
    """See Depth; the one that gives the most tokens a second, by the costs and the acceptance measured so far."""

    def __init__(self) -> None:
        self._pause = _PAUSE
        self._left = 0  # plain tokens before the draft is tried again
        self._to_try = _CATCHES_UP  # rounds before the draft is judged
        self._n_rounds = _TRIED  # of the next plan: few at first, as what a trial shows may be chance
        self._n_all, self._n_behind = 0, 0  # tokens of a sequence; the last of them that the draft has not been fed
        self._lost = 0.0  # seconds against plain steps, less what was gained since
        self._n_tokens, self._retimed = 0, _RETIMED  # of rounds since a plain step was timed, and until one is again
        self._step = _Cost()  # of a plain step
        self._catch_up = _Cost()  # of a token that is fed to the draft
        self._costs: dict[int, _Cost] = {}  # of a drafted token, beside the step, in rounds of a depth
        # what is usual stands for a few measurements, so that the first ones do not decide alone
        self._accepted = _Mean(0.98, 0.7, weight=6)  # of a verified token
        self._yield_ratio = _Mean(0.95, 1.0, weight=10)  # tokens that a round gave, over those that were expected of it
        self._rejected = _Mean(0.995, 0.3, weight=6)  # of a token that the draft was asked about
        self._mean_uncertainty = _Mean(0.995, 0.6, weight=6)  # about it

    def next(self, initial: InitialEstimate) -> RoundPlan:
        """See DraftLengthPolicy."""
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
        # a try now and then: what comes may be easier
        self._left, self._pause = self._pause, min(_GROWTH * self._pause, _LONGEST_PAUSE)
        self._n_rounds = _TRIED
        return RoundPlan(0, 1)

    def record_steps(self, n_tokens: int, seconds: float) -> None:
        """See DraftLengthPolicy."""
        self._n_all += n_tokens
        self._n_behind += n_tokens
        if 0 < self._left <= n_tokens:
            self._to_try = _CATCHES_UP
        self._left = max(0, self._left - n_tokens)
        self._step.add(seconds / n_tokens)

    def record_rounds(self, draft_length: int, seconds: float, stats: RoundStats, *, once: float = 0.0) -> None:
        """See DraftLengthPolicy."""
        n_rounds, n_verified, n_accepted = stats.n_rounds, stats.n_verified, stats.n_accepted
        n_drafted = (
            stats.n_drafted / n_rounds or draft_length
        )  # to look for tokens has its cost where none come to mind, too
        self._count_loss(draft_length, n_drafted, seconds, stats, once)
        # where nothing was verified, nothing came to a proposer's mind; what a try shows counts for more than it is
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
        """Add what rounds took to what was lost, and take from it what plain steps would have taken."""
        n_rounds = stats.n_rounds / stats.n_sequences
        n_tokens = n_rounds + stats.n_accepted / stats.n_sequences
        # what takes much longer has another cause
        if self._costs and self._to_try != _CATCHES_UP:
            most = 1.5 * (self._step.value + n_drafted * self._token_cost(draft_length))
        else:
            most = self._step.value * (n_drafted + _VERIFY + self._n_behind / n_rounds)
        self._lost = max(0.0, self._lost + min(seconds, most) * n_rounds + once - n_tokens * self._step.value)
        self._n_all += round(n_tokens)

    def _add_cost(self, draft_length: int, n_drafted: float, seconds: float, n_rounds: int) -> None:
        """Learn what a drafted token costs, or feeding the draft in the first round of a trial."""
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
        """Whether what a trial may cost, and what was lost before, are little beside what there is to decode."""
        step, draft_step = self._step.value, initial.draft_share * self._step.value
        drafting = _FIRST * self._token_cost(_FIRST) if self._costs else (_VERIFY - 1) * step + _FIRST * draft_step
        each = step + drafting + initial.host_seconds - self._least_tokens() * step
        catching_up = self._n_behind * (self._catch_up.value if self._catch_up.is_begun else _CATCH_UP * draft_step)
        n_tokens = self._n_all + min(initial.n_left, _NEXT)
        return self._lost + _CATCHES_UP * each + catching_up <= _RISK * n_tokens * step

    def _least_tokens(self) -> float:
        """That a round of a trial is expected to give if the draft agrees less than most do, or as it did before."""
        return self._yield_ratio.value * self._tokens(_FIRST) if self._costs else (1 - 0.5 ** (_FIRST + 1)) / (1 - 0.5)

    def _tokens(self, draft_length: float) -> float:
        """That a round is expected to give, if all tokens are alike."""
        accepted = min(self._accepted.value, 1 - 1e-9)
        return (1 - math.pow(accepted, draft_length + 1)) / (1 - accepted)

    def _token_cost(self, draft_length: int) -> float:
        """Seconds of a drafted token, by rounds of this depth, or else of the nearest that was tried."""
        nearest = min(self._costs, key=lambda tried: abs(tried - draft_length))
        return max(self._costs[nearest].value, 0.0)

    def _speed(self, draft_length: int) -> float:
        """Tokens a second that rounds of a depth are expected to give."""
        return (
            self._yield_ratio.value
            * self._tokens(draft_length)
            / (self._step.value + draft_length * self._token_cost(draft_length))
        )

    def _max_uncertainty(self, draft_length: int) -> float:
        """After which one more token is not worth its time."""
        least_chance = self._token_cost(draft_length) * self._speed(draft_length)  # that it stays
        return (
            max(0.0, -math.log(max(least_chance, 1e-9)))
            * self._mean_uncertainty.value
            / max(self._rejected.value, 1e-9)
        )


class _Mean:
    """Of numbers that come one by one, the latest counting most; the first ones are averaged plainly."""

    def __init__(self, memory: float, value: float = 0.0, *, weight: float = 0.0) -> None:
        self.value = value
        self._memory = memory  # of what came before, after each new number
        self._weight = weight

    def add(self, number: float, weight: float = 1) -> None:
        self._weight = self._weight * self._memory**weight + weight
        self.value += (number - self.value) * weight / self._weight


class _Cost:
    """Of seconds: the median of the last few, as now and then memory is taken or another program is in the way."""

    def __init__(self) -> None:
        self._last: deque[float] = deque(maxlen=7)
        self._is_old = False

    @property
    def is_begun(self) -> bool:
        """Whether there is anything to tell."""
        return bool(self._last)

    @property
    def is_known(self) -> bool:
        """Whether there is enough to tell, and new enough."""
        return len(self._last) >= _TRIED and not self._is_old

    @property
    def value(self) -> float:
        return statistics.median(self._last)

    def add(self, seconds: float) -> None:
        while self._is_old and len(self._last) >= _TRIED:  # the next ones count for much: something may have changed
            self._last.popleft()
        self._is_old = False
        self._last.append(seconds)

    def renew(self) -> None:
        """Something may have changed since."""
        self._is_old = True
