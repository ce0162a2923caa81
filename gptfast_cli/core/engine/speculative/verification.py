"""Verification of drafted tokens, and the statistics of rounds.

Speculative sampling (Leviathan et al. 2023, arXiv:2211.17192; Chen et al. 2023, arXiv:2302.01318): a token d that was
drawn from q is accepted with probability min(1, p(d) / q(d)); the first that is not is replaced by a draw from
max(p - q, 0), made to sum to 1; after the last, one more is drawn from p. Rows are independent of each other.
"""

from collections import Counter
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gptfast_cli.core.engine.sampling import sample_inverse_cdf


@dataclass(frozen=True, slots=True)
class Verification:
    """What came of each row's drafted tokens.

    n_accepted: [rows] int64, how many of them stay
    tokens:     [rows] int64, the token that follows these; vocab_size where p is no number
    overlap:    [rows], the sum of min(p, q), the chance that a drafted token had, over those that were looked at: all
                up to the first that does not stay
    """

    n_accepted: Tensor
    tokens: Tensor
    overlap: Tensor


def verify(
    p: Tensor, q: Tensor, drafted: Tensor, draft_lengths: Tensor, *, acceptance_uniforms: Tensor, token_uniforms: Tensor
) -> Verification:
    """Verify rows of drafted tokens, of which row r has depths[r]; what stands behind these counts for nothing.

    p:                   [rows, depth + 1, vocab] probabilities of the target
    q:                   [rows, depth, vocab] those that the drafted tokens [rows, depth] int64 were drawn from; zeros
                         where a draft could not tell: what it drafted there does not stay
    draft_lengths:              [rows] int64
    acceptance_uniforms: [rows, depth] numbers in [0, 1), unrelated to those that the tokens were drawn with
    token_uniforms:      [rows, depth + 1], unrelated to all of these
    """
    draft_length, at = drafted.shape[1], drafted.unsqueeze(-1)
    p_drafted, q_drafted = p[:, :draft_length].gather(-1, at).squeeze(-1), q.gather(-1, at).squeeze(-1)
    # "<": the smallest uniform is 0, and must not accept what the target never says
    is_accepted = (acceptance_uniforms * q_drafted < p_drafted) & (q_drafted > 0)
    n_accepted = _leading(is_accepted, draft_lengths)
    rows = torch.arange(len(p), device=p.device)
    p_next = p[rows, n_accepted]
    padding = q.new_zeros(len(q), 1, q.shape[-1])  # after all of them nothing was drafted: what is left of p is p
    q_next = torch.cat([q, padding], dim=1)[rows, n_accepted]
    q_next = torch.where((n_accepted < draft_lengths).unsqueeze(-1), q_next, 0)
    rest = (p_next - q_next).clamp(min=0)
    # nothing is left where both laws are equal but for rounding
    rest = torch.where(rest.sum(dim=-1, keepdim=True) == 0, p_next, rest)
    tokens = sample_inverse_cdf(rest, token_uniforms[rows, n_accepted])
    accept_probs = torch.minimum(p[:, :draft_length], q).sum(dim=-1).nan_to_num(0)
    position = torch.arange(draft_length, device=p.device)
    is_looked_at = position < torch.minimum(n_accepted + 1, draft_lengths).unsqueeze(-1)
    return Verification(n_accepted, tokens, torch.where(is_looked_at, accept_probs, 0).sum(dim=-1))


def verify_greedy(best: Tensor, drafted: Tensor, draft_lengths: Tensor) -> Verification:
    """The same where the target takes its most probable tokens, `best` [rows, depth + 1] int64: equal ones stay."""
    is_equal = best[:, : drafted.shape[1]] == drafted
    n_accepted = _leading(is_equal, draft_lengths)
    tokens = best[torch.arange(len(best), device=best.device), n_accepted]
    return Verification(n_accepted, tokens, n_accepted.float())


def _leading(is_accepted: Tensor, draft_lengths: Tensor) -> Tensor:
    """How many of each row are accepted before the first that is not, or that was not drafted."""
    is_drafted = torch.arange(is_accepted.shape[1], device=is_accepted.device) < draft_lengths.unsqueeze(-1)
    return (is_accepted & is_drafted).long().cumprod(dim=-1).sum(dim=-1)


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
    def max_draft_length(self) -> int:
        """Tokens drafted in a round, at most."""
        return max((drafted for drafted, _ in self._outcomes), default=0)

    @property
    def histogram(self) -> list[int]:
        """Rounds by how many tokens they accepted, from 0 on."""
        counts = [0] * (self.max_draft_length + 1)
        for (_, accepted), n in self._outcomes.items():
            counts[accepted] += n
        return counts

    @property
    def positions(self) -> list[Position]:
        """Each drafted token of a round, the first one first."""
        outcomes = self._outcomes.items()
        return [
            Position(
                sum(n for (drafted, _), n in outcomes if drafted > position),
                sum(n for (drafted, accepted), n in outcomes if drafted > position and accepted >= position),
                sum(n for (_, accepted), n in outcomes if accepted > position),
            )
            for position in range(self.max_draft_length)
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
