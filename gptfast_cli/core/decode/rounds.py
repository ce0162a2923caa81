"""What rounds of speculative decoding came to, all sequences together."""

from collections import Counter
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Position:
    """The n-th drafted token of a round: in how many rounds it was drafted, verified and accepted.

    It is verified where all those before it were accepted.
    """

    n_drafted: int
    n_verified: int
    n_accepted: int


@dataclass(slots=True)
class Rounds:
    """Counts of rounds, each of one sequence, and the seconds that their parts took."""

    n_tokens: int = 0  # that rounds gave, those after the accepted ones with them
    n_plain_tokens: int = 0  # given by steps without a draft between the rounds
    draft_seconds: float = 0.0
    verify_seconds: float = 0.0
    sample_seconds: float = 0.0
    host_seconds: float = 0.0  # the rest
    draft_prefill_seconds: float = 0.0  # before the first round, and part of none of these
    _outcomes: Counter[tuple[int, int]] = field(default_factory=Counter)  # rounds by tokens drafted and accepted
    _overlap: float = 0.0  # the sum of min(p, q), over all verified tokens

    def add(self, n_drafted: int, n_accepted: int, n_tokens: int, overlap: float) -> None:
        """Count a round of one sequence; `overlap` is the sum over its verified tokens of the sum of min(p, q)."""
        self._outcomes[n_drafted, n_accepted] += 1
        self.n_tokens += n_tokens
        self._overlap += overlap

    @property
    def n_rounds(self) -> int:
        """Rounds, each of one sequence."""
        return self._outcomes.total()

    @property
    def deepest(self) -> int:
        """Tokens drafted in a round, at most."""
        return max((drafted for drafted, _ in self._outcomes), default=0)

    @property
    def histogram(self) -> list[int]:
        """Rounds by how many tokens they accepted, from 0 on."""
        counts = [0] * (self.deepest + 1)
        for (_, accepted), n in self._outcomes.items():
            counts[accepted] += n
        return counts

    @property
    def positions(self) -> list[Position]:
        """Each drafted token of a round, the first one first."""
        outcomes = self._outcomes.items()
        return [
            Position(
                sum(n for (drafted, _), n in outcomes if drafted > place),
                sum(n for (drafted, accepted), n in outcomes if drafted > place and accepted >= place),
                sum(n for (_, accepted), n in outcomes if accepted > place),
            )
            for place in range(self.deepest)
        ]

    @property
    def alpha(self) -> float | None:
        """Mean over verified tokens of the sum of min(p, q): how well the draft agrees, whatever the depth."""
        n_verified = sum(position.n_verified for position in self.positions)
        return self._overlap / n_verified if n_verified else None

    @property
    def tau(self) -> float | None:
        """Tokens per round."""
        return self.n_tokens / self.n_rounds if self.n_rounds else None

    @property
    def seconds(self) -> float:
        """Of all rounds."""
        return self.draft_seconds + self.verify_seconds + self.sample_seconds + self.host_seconds
