"""How many tokens a round drafts: always as many, or as many as pay by what was measured so far.

A round of depth k gives (1 - a^(k+1)) / (1 - a) tokens where each drafted one is accepted with probability a (Leviathan
et al. 2023, arXiv:2211.17192): somewhat fewer where easy and hard stretches take turns.

A draft that says how sure it is lets each round end where a hard stretch begins. Its doubt about a token is 1 - its
probability of it; of all doubts a share f comes true, when the target rejects the token. All tokens so far stay with
probability exp(-f * their doubts), nearly, and one more pays while this is above its seconds times tokens a second.
f is measured, because a draft may doubt much and be right, as another form of the target itself is, or little and be
wrong.
"""

import math
import statistics
from collections import deque
from dataclasses import dataclass
from typing import Protocol

from gptfast_cli.core.model.collective import Collective

MOST = 16
"""The deepest round that an adaptive depth considers."""

_FIRST = 3  # tokens drafted while nothing is known
_ROUNDS = 32  # in a row, before an adapted depth is looked at again
_TRIED = 3  # in a row, to see whether drafting pays, or what a plain step takes
_OF_A_TRY = 5  # times that its acceptance counts
_GAIN = 1.03  # by which a draft has to be faster than none, and a depth that was never tried than the best that was
_RETIMED = 1024  # tokens of rounds, until plain steps are timed again
_PROMISE = 1.1  # by which that depth has to look faster than none
_PAUSE, _GROWTH, _LONGEST_PAUSE = (
    32,
    4,
    4096,
)  # plain tokens between tries of a draft that does not pay, and how it grows


@dataclass(frozen=True, slots=True)
class Plan:
    """Tokens to draft in a round, 0 for a plain step, and rounds after which to ask again.

    most_doubt: a draft that can tell goes on, or ends early, until its doubts add up to more; infinity: `depth` it is
    """

    depth: int
    n_rounds: int
    most_doubt: float = math.inf


@dataclass(slots=True)
class Tally:
    """What rounds came to, all together.

    n_rounds:   each of one sequence; n_verified: tokens that were looked at in them, as far as the first that did not
                stay; n_accepted: those that did
    doubt:      of the draft about the verified tokens, 0 where it was not asked
    """

    n_rounds: int = 0
    n_drafted: int = 0
    n_verified: int = 0
    n_accepted: int = 0
    doubt: float = 0.0


class Depth(Protocol):
    """Says how deep rounds are to be, and is told how it went."""

    def next(self) -> Plan:
        """What to do next."""
        ...

    def tell_steps(self, n_tokens: int, seconds: float) -> None:
        """Plain steps gave each sequence so many tokens."""
        ...

    def tell_rounds(self, depth: int, seconds: float, tally: Tally) -> None:
        """Rounds that were to be of that depth, of as many sequences side by side as it took each `seconds`."""
        ...


class FixedDepth:
    """See Depth; always the same, whatever the draft thinks of its tokens."""

    def __init__(self, depth: int) -> None:
        self._plan = Plan(depth, n_rounds=32)

    def next(self) -> Plan:
        """See Depth."""
        return self._plan

    def tell_steps(self, n_tokens: int, seconds: float) -> None:
        """See Depth."""

    def tell_rounds(self, depth: int, seconds: float, tally: Tally) -> None:
        """See Depth."""


class AgreedDepth:
    """See Depth; that of rank 0, as ranks time their steps each for itself."""

    def __init__(self, own: Depth, together: Collective) -> None:
        self._own, self._together = own, together

    def next(self) -> Plan:
        """See Depth."""
        return self._together.agree(self._own.next())

    def tell_steps(self, n_tokens: int, seconds: float) -> None:
        """See Depth."""
        self._own.tell_steps(n_tokens, seconds)

    def tell_rounds(self, depth: int, seconds: float, tally: Tally) -> None:
        """See Depth."""
        self._own.tell_rounds(depth, seconds, tally)


class AdaptiveDepth:
    """See Depth; the one that gives the most tokens a second, by the costs and the acceptance measured so far."""

    def __init__(self) -> None:
        self._pause = _PAUSE
        self._left = 0  # plain tokens before the draft is tried again
        self._to_try = _TRIED  # rounds before the draft is judged
        self._n_tokens = 0  # of rounds since plain steps were timed
        self._step = _Cost()  # of a plain step
        self._costs: dict[int, _Cost] = {}  # of a drafted token, beside the step, in rounds of a depth
        # what is usual stands for a few measurements, so that the first ones do not decide alone
        self._accepted = _Mean(0.98, 0.7, weight=6)  # of a verified token
        self._realism = _Mean(0.95, 1.0, weight=10)  # tokens that a round gave, over those that were expected of it
        self._rejected = _Mean(0.995, 0.3, weight=6)  # of a token that the draft was asked about
        self._doubt = _Mean(0.995, 0.6, weight=6)  # about it

    def next(self) -> Plan:
        """See Depth."""
        if not self._step.is_known or self._left > 0:
            return Plan(0, 1)
        if self._to_try > 0:
            return Plan(_FIRST, self._to_try)
        tried = max(self._costs, key=self._speed)
        best = max(range(1, MOST + 1), key=self._speed)
        is_promising = self._speed(best) > max(_GAIN * self._speed(tried), _PROMISE / self._step.value)
        depth = best if is_promising else tried
        if self._speed(depth) * self._step.value > _GAIN:
            self._pause = _PAUSE
            return Plan(depth, _ROUNDS, self._most_doubt(depth))
        # a try now and then: what comes may be easier
        self._left, self._pause = self._pause, min(_GROWTH * self._pause, _LONGEST_PAUSE)
        return Plan(0, 1)

    def tell_steps(self, n_tokens: int, seconds: float) -> None:
        """See Depth."""
        if 0 < self._left <= n_tokens:
            self._to_try = _TRIED
        self._left = max(0, self._left - n_tokens)
        self._step.add(seconds / n_tokens)

    def tell_rounds(self, depth: int, seconds: float, tally: Tally) -> None:
        """See Depth."""
        n_rounds, n_verified, n_accepted = tally.n_rounds, tally.n_verified, tally.n_accepted
        n_drafted = tally.n_drafted / n_rounds or depth  # to look for tokens has its cost where none come to mind, too
        expected = self._tokens(n_drafted)
        self._costs.setdefault(depth, _Cost()).add((seconds - self._step.value) / n_drafted)
        # where nothing was verified, nothing came to a proposer's mind; what a try shows counts for more than it is
        weight = max(n_verified, 1) * (_OF_A_TRY if self._to_try > 0 else 1)
        self._accepted.add(n_accepted / n_verified if n_verified else 0.0, weight)
        self._to_try = max(0, self._to_try - n_rounds)
        self._realism.add((n_accepted / n_rounds + 1) / expected)
        if tally.doubt > 0:
            self._rejected.add(1 - n_accepted / n_verified, n_verified)
            self._doubt.add(tally.doubt / n_verified, n_verified)
        self._n_tokens += n_accepted + n_rounds
        if self._n_tokens > _RETIMED:
            self._n_tokens = 0
            self._step.restart()

    def _tokens(self, depth: float) -> float:
        """That a round is expected to give, if all tokens are alike."""
        accepted = min(self._accepted.value, 1 - 1e-9)
        return (1 - math.pow(accepted, depth + 1)) / (1 - accepted)

    def _token_cost(self, depth: int) -> float:
        """Seconds of a drafted token, by rounds of this depth, or else of the nearest that was tried."""
        nearest = min(self._costs, key=lambda tried: abs(tried - depth))
        return max(self._costs[nearest].value, 0.0)

    def _speed(self, depth: int) -> float:
        """Tokens a second that rounds of a depth are expected to give."""
        return self._realism.value * self._tokens(depth) / (self._step.value + depth * self._token_cost(depth))

    def _most_doubt(self, depth: int) -> float:
        """After which one more token is not worth its time."""
        least_chance = self._token_cost(depth) * self._speed(depth)  # that it stays
        return max(0.0, -math.log(max(least_chance, 1e-9))) * self._doubt.value / max(self._rejected.value, 1e-9)


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
        self._n_known = 0

    @property
    def is_known(self) -> bool:
        """Whether there is enough to tell."""
        return self._n_known >= _TRIED

    @property
    def value(self) -> float:
        return statistics.median(self._last)

    def add(self, seconds: float) -> None:
        if self._n_known == 0:
            self._last.clear()
        self._n_known += 1
        self._last.append(seconds)

    def restart(self) -> None:
        """Begin anew with what comes next: something may have changed."""
        self._n_known = 0
