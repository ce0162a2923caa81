"""How many tokens a round drafts: always as many, or as many as pay by what was measured so far.

A round of depth k gives (1 - a^(k+1)) / (1 - a) tokens where each drafted one is accepted with probability a (Leviathan
et al. 2023, arXiv:2211.17192): somewhat fewer where easy and hard stretches take turns.
"""

from dataclasses import dataclass
from typing import Protocol

MOST = 16
"""The deepest round that an adaptive depth considers."""

_FIRST = 3  # tokens drafted while nothing is known
_ROUNDS = 16  # in a row, before an adapted depth is looked at again
_TRIED = 2  # in a row, where drafting did not pay before
_OF_A_TRY = 5  # times that its acceptance counts
_GAIN = 1.03  # by which a depth that was never tried has to look faster than the best that was, and a draft than none
_PAUSE, _LONGEST_PAUSE = 64, 2048  # plain tokens between two tries of a draft that does not pay


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
        self._is_try = False  # the next rounds are one
        self._step = _Mean(0.9)  # seconds of a plain step
        self._costs: dict[int, _Mean] = {}  # seconds of a round, by its depth
        self._accepted = _Mean(0.98)  # of a verified token
        self._realism = _Mean(0.95)  # tokens that a round gave, over those that were expected of it

    def next(self) -> Plan:
        """See Depth."""
        if not self._step.is_known or self._left > 0:
            return Plan(0, 1)
        if not self._costs or self._is_try:
            return Plan(_FIRST, _TRIED)
        tried = max(self._costs, key=self._speed)
        best = max(range(1, MOST + 1), key=self._speed)
        depth = best if self._speed(best) > _GAIN * self._speed(tried) else tried
        if self._speed(depth) * self._step.value > _GAIN:
            self._pause = _PAUSE
            return Plan(depth, _ROUNDS)
        # a try now and then: what comes may be easier
        self._left, self._pause = self._pause, min(2 * self._pause, _LONGEST_PAUSE)
        return Plan(0, 1)

    def tell_steps(self, n_tokens: int, seconds: float) -> None:
        """See Depth."""
        self._is_try = 0 < self._left <= n_tokens
        self._left = max(0, self._left - n_tokens)
        self._step.add(seconds / n_tokens)

    def tell_rounds(self, depth: int, seconds: float, *, n_rounds: int, n_verified: int, n_accepted: int) -> None:
        """See Depth."""
        expected = self._tokens(depth) if self._accepted.is_known else None
        self._costs.setdefault(depth, _Mean(0.8)).add(seconds)
        # where nothing was verified, nothing came to a proposer's mind; what a try shows counts for more than it is
        weight = max(n_verified, 1) * (_OF_A_TRY if self._is_try else 1)
        self._accepted.add(n_accepted / n_verified if n_verified else 0.0, weight)
        self._is_try = False
        if expected is not None:
            self._realism.add((n_accepted / n_rounds + 1) / expected)

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
        realism = self._realism.value if self._realism.is_known else 1.0
        return realism * self._tokens(depth) / self._cost(depth)


class _Mean:
    """Of numbers that come one by one, the latest counting most; the first ones are averaged plainly."""

    def __init__(self, memory: float) -> None:
        self.value = 0.0
        self._memory = memory  # of what came before, after each new number
        self._weight = 0.0

    @property
    def is_known(self) -> bool:
        return self._weight > 0

    def add(self, number: float, weight: float = 1) -> None:
        self._weight = self._weight * self._memory**weight + weight
        self.value += (number - self.value) * weight / self._weight
