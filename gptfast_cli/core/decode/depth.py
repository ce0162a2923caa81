"""How many tokens a round drafts: always as many, or as many as pay by what was measured so far.

A round of depth k gives (1 - a^(k+1)) / (1 - a) tokens where each drafted one is accepted with probability a, and costs
a verification and k drafted tokens (Leviathan et al. 2023, arXiv:2211.17192).
"""

from typing import Protocol

MOST = 16
"""The deepest round that an adaptive depth considers."""

_FIRST = 3  # tokens drafted while nothing is known
_MEMORY = 0.95  # of what was measured, after each new measurement
_PLAIN_AT_FIRST = 2  # calls that show what a step costs without a draft
_PAUSE, _LONGEST_PAUSE = 64, 1024  # plain tokens between two tries of a draft that does not pay


class Depth(Protocol):
    """Says before each round how many tokens to draft, 0 for a plain step, and is told how it went."""

    def next(self) -> int:
        """Tokens to draft for each sequence."""
        ...

    def tell_step(self, n_tokens: int, seconds: float) -> None:
        """A call of plain steps gave each sequence so many tokens."""
        ...

    def tell_round(self, depth: int, seconds: float, *, n_tested: int, n_accepted: int) -> None:
        """A round of that depth tested drafted tokens, of all sequences together, and accepted some of them."""
        ...


class FixedDepth:
    """See Depth; always the same."""

    def __init__(self, depth: int) -> None:
        self._depth = depth

    def next(self) -> int:
        """See Depth."""
        return self._depth

    def tell_step(self, n_tokens: int, seconds: float) -> None:
        """See Depth."""

    def tell_round(self, depth: int, seconds: float, *, n_tested: int, n_accepted: int) -> None:
        """See Depth."""


class AdaptiveDepth:
    """See Depth; the one with the most tokens a second by the costs and the acceptance measured so far."""

    def __init__(self) -> None:
        self._n_plain = 0  # calls of plain steps
        self._pause = _PAUSE
        self._left = 0  # plain tokens before the draft is tried again
        self._step = _Mean()  # seconds of a plain token
        self._per_token = _Mean()  # seconds that a round of depth k takes beyond a plain step, over k
        self._accepted = _Mean()  # of a tested token

    def next(self) -> int:
        """See Depth."""
        if self._n_plain < _PLAIN_AT_FIRST:
            return 0
        if not self._accepted.is_known:
            return _FIRST
        if self._left > 0:
            return 0
        best = max(range(MOST + 1), key=self._speed)
        if best == 0:  # a try now and then: what comes may be easier
            self._left, self._pause = self._pause, min(2 * self._pause, _LONGEST_PAUSE)
            return 1
        self._pause = _PAUSE
        return best

    def tell_step(self, n_tokens: int, seconds: float) -> None:
        """See Depth."""
        self._n_plain += 1
        self._left -= n_tokens
        for _ in range(n_tokens):
            self._step.add(seconds / n_tokens)

    def tell_round(self, depth: int, seconds: float, *, n_tested: int, n_accepted: int) -> None:
        """See Depth."""
        self._per_token.add((seconds - self._step.value) / depth)
        for _ in range(n_accepted):
            self._accepted.add(1.0)
        for _ in range(n_tested - n_accepted):
            self._accepted.add(0.0)

    def _speed(self, depth: int) -> float:
        """Tokens a second that rounds of a depth are expected to give."""
        accepted = self._accepted.value
        n_tokens = sum(accepted**n for n in range(depth + 1))
        return n_tokens / (self._step.value + depth * max(self._per_token.value, 0.0))


class _Mean:
    """Of numbers that come one by one, the latest counting most; the first ones are averaged plainly."""

    def __init__(self) -> None:
        self.value = 0.0
        self._weight = 0.0

    @property
    def is_known(self) -> bool:
        return self._weight > 0

    def add(self, number: float) -> None:
        self._weight = self._weight * _MEMORY + 1
        self.value += (number - self.value) / self._weight
