"""How many tokens a round drafts: always as many, or as many as pay by what was measured so far.

A round of depth k gives (1 - a^(k+1)) / (1 - a) tokens where each drafted one is accepted with probability a (Leviathan
et al. 2023, arXiv:2211.17192): somewhat fewer where easy and hard stretches take turns.
"""

import statistics
from collections import deque
from dataclasses import dataclass
from typing import Protocol

MOST = 16
"""The deepest round that an adaptive depth considers."""

_FIRST = 3  # tokens drafted while nothing is known
_ROUNDS = 16  # in a row, before an adapted depth is looked at again
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
    """Tokens to draft in a round, 0 for a plain step, and rounds after which to ask again."""

    depth: int
    n_rounds: int


class Depth(Protocol):
    """Says how deep rounds are to be, and is told how it went."""

    def next(self) -> Plan:
        """What to do next."""
        ...

    def tell_steps(self, n_tokens: int, seconds: float) -> None:
        """Plain steps gave each sequence so many tokens."""
        ...

    def tell_rounds(self, depth: int, seconds: float, *, n_rounds: int, n_verified: int, n_accepted: int) -> None:
        """Rounds of that depth of as many sequences side by side as it took each `seconds`; counts are of all together.

        n_verified: drafted tokens that were looked at, n_accepted: those of them that stayed
        """
        ...


class FixedDepth:
    """See Depth; always the same."""

    def __init__(self, depth: int) -> None:
        self._plan = Plan(depth, n_rounds=32)

    def next(self) -> Plan:
        """See Depth."""
        return self._plan

    def tell_steps(self, n_tokens: int, seconds: float) -> None:
        """See Depth."""

    def tell_rounds(self, depth: int, seconds: float, *, n_rounds: int, n_verified: int, n_accepted: int) -> None:
        """See Depth."""


class AdaptiveDepth:
    """See Depth; the one that gives the most tokens a second, by the costs and the acceptance measured so far."""

    def __init__(self) -> None:
        self._pause = _PAUSE
        self._left = 0  # plain tokens before the draft is tried again
        self._to_try = _TRIED  # rounds before the draft is judged
        self._n_tokens = 0  # of rounds since plain steps were timed
        self._step = _Cost()  # of a plain step
        self._costs: dict[int, _Cost] = {}  # of a round, by its depth
        # what is usual stands for a few measurements, so that the first ones do not decide alone
        self._accepted = _Mean(0.98, 0.7, weight=6)  # of a verified token
        self._realism = _Mean(0.95, 1.0, weight=10)  # tokens that a round gave, over those that were expected of it

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
            return Plan(depth, _ROUNDS)
        # a try now and then: what comes may be easier
        self._left, self._pause = self._pause, min(_GROWTH * self._pause, _LONGEST_PAUSE)
        return Plan(0, 1)

    def tell_steps(self, n_tokens: int, seconds: float) -> None:
        """See Depth."""
        if 0 < self._left <= n_tokens:
            self._to_try = _TRIED
        self._left = max(0, self._left - n_tokens)
        self._step.add(seconds / n_tokens)

    def tell_rounds(self, depth: int, seconds: float, *, n_rounds: int, n_verified: int, n_accepted: int) -> None:
        """See Depth."""
        expected = self._tokens(depth)
        self._costs.setdefault(depth, _Cost()).add(seconds)
        # where nothing was verified, nothing came to a proposer's mind; what a try shows counts for more than it is
        weight = max(n_verified, 1) * (_OF_A_TRY if self._to_try > 0 else 1)
        self._accepted.add(n_accepted / n_verified if n_verified else 0.0, weight)
        self._to_try = max(0, self._to_try - n_rounds)
        self._realism.add((n_accepted / n_rounds + 1) / expected)
        self._n_tokens += n_accepted + n_rounds
        if self._n_tokens > _RETIMED:
            self._n_tokens = 0
            self._step.restart()

    def _tokens(self, depth: int) -> float:
        """That a round is expected to give, if all tokens are alike."""
        return sum(self._accepted.value**n for n in range(depth + 1))

    def _cost(self, depth: int) -> float:
        """Seconds of a round; of one that was never tried, on a line through the nearest one that was."""
        if depth in self._costs:
            return self._costs[depth].value
        nearest = min(self._costs, key=lambda tried: abs(tried - depth))
        cost = self._costs[nearest].value
        return cost + (depth - nearest) * max(cost - self._step.value, 0.0) / nearest

    def _speed(self, depth: int) -> float:
        """Tokens a second that rounds of a depth are expected to give."""
        return self._realism.value * self._tokens(depth) / self._cost(depth)


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

    @property
    def is_known(self) -> bool:
        """Whether there is enough to tell."""
        return len(self._last) >= _TRIED

    @property
    def value(self) -> float:
        return statistics.median(self._last)

    def add(self, seconds: float) -> None:
        self._last.append(seconds)

    def restart(self) -> None:
        """Begin anew: something may have changed."""
        self._last.clear()
