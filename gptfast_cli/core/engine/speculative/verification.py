"""Verification of drafted tokens, and the statistics of rounds.

Speculative sampling (Leviathan et al. 2023, arXiv:2211.17192; Chen et al. 2023, arXiv:2302.01318): a token d drawn from
the draft's distribution q is accepted with probability min(1, p(d) / q(d)). The first rejected token is replaced by a
draw from max(p - q, 0) / sum(max(p - q, 0)); if all are accepted, a bonus token is drawn from p. The emitted tokens
have the target's distribution p. Rows are independent of each other. The CPU engine has the same rules in
native/verify.h; tests/backends/test_cpu_rounds.py holds both equal.
"""

from collections import Counter
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gptfast_cli.core.engine.sampling import sample_inverse_cdf


@dataclass(frozen=True, slots=True)
class Verification:
    """Result of one round for each row.

    n_accepted: [rows] int64, number of accepted draft tokens
    tokens:     [rows] int64, the corrected or bonus token after these; vocab_size where p is not finite
    overlap:    [rows], sum of the acceptance probabilities sum(min(p, q)) over the verified tokens: the accepted ones
                and the first rejected one
    """

    n_accepted: Tensor
    tokens: Tensor
    overlap: Tensor


def verify(
    p: Tensor, q: Tensor, drafted: Tensor, draft_lengths: Tensor, *, acceptance_uniforms: Tensor, token_uniforms: Tensor
) -> Verification:
    """Verify rows of drafted tokens; row r has draft_lengths[r] of them, and the rest is padding.

    p:                   [rows, k + 1, vocab] probabilities of the target
    q:                   [rows, k, vocab] probabilities that the drafted tokens [rows, k] int64 were drawn from;
                         zeros where the draft's output was not finite: the token is rejected
    draft_lengths:       [rows] int64
    acceptance_uniforms: [rows, k] in [0, 1), independent of those that the tokens were drawn with
    token_uniforms:      [rows, k + 1] in [0, 1), independent of all of these
    """
    draft_length, at = drafted.shape[1], drafted.unsqueeze(-1)
    p_drafted, q_drafted = p[:, :draft_length].gather(-1, at).squeeze(-1), q.gather(-1, at).squeeze(-1)
    # "<": a uniform of 0 must not accept a token of probability 0
    is_accepted = (acceptance_uniforms * q_drafted < p_drafted) & (q_drafted > 0)
    n_accepted = _leading(is_accepted, draft_lengths)
    rows = torch.arange(len(p), device=p.device)
    p_next = p[rows, n_accepted]
    padding = q.new_zeros(len(q), 1, q.shape[-1])  # q = 0 after the last drafted token: the residual is p
    q_next = torch.cat([q, padding], dim=1)[rows, n_accepted]
    q_next = torch.where((n_accepted < draft_lengths).unsqueeze(-1), q_next, 0)
    rest = (p_next - q_next).clamp(min=0)
    # p == q up to rounding leaves no residual
    rest = torch.where(rest.sum(dim=-1, keepdim=True) == 0, p_next, rest)
    tokens = sample_inverse_cdf(rest, token_uniforms[rows, n_accepted])
    accept_probs = torch.minimum(p[:, :draft_length], q).sum(dim=-1).nan_to_num(0)
    position = torch.arange(draft_length, device=p.device)
    is_looked_at = position < torch.minimum(n_accepted + 1, draft_lengths).unsqueeze(-1)
    return Verification(n_accepted, tokens, torch.where(is_looked_at, accept_probs, 0).sum(dim=-1))


def verify_greedy(best: Tensor, drafted: Tensor, draft_lengths: Tensor) -> Verification:
    """Verify greedily: accept drafted tokens while they equal the target's argmax, `best` [rows, k + 1] int64."""
    is_equal = best[:, : drafted.shape[1]] == drafted
    n_accepted = _leading(is_equal, draft_lengths)
    tokens = best[torch.arange(len(best), device=best.device), n_accepted]
    return Verification(n_accepted, tokens, n_accepted.float())


def _leading(is_accepted: Tensor, draft_lengths: Tensor) -> Tensor:
    """Length of the accepted prefix of each row."""
    is_drafted = torch.arange(is_accepted.shape[1], device=is_accepted.device) < draft_lengths.unsqueeze(-1)
    return (is_accepted & is_drafted).long().cumprod(dim=-1).sum(dim=-1)


@dataclass(frozen=True, slots=True)
class Position:
    """Number of rounds that drafted, verified and accepted a token at this position.

    A token is verified where all tokens before it were accepted.
    """

    n_drafted: int
    n_verified: int
    n_accepted: int


@dataclass(slots=True)
class Rounds:
    """Counts and timings of rounds; a round counts once for each sequence."""

    n_tokens: int = 0  # emitted by rounds, bonus and corrected tokens included
    n_plain_tokens: int = 0  # emitted by plain steps between the rounds
    draft_seconds: float = 0.0
    verify_seconds: float = 0.0
    sample_seconds: float = 0.0
    host_seconds: float = 0.0  # rounds minus draft, verify and sample
    draft_prefill_seconds: float = 0.0  # the draft's prefill, not part of a round
    _outcomes: Counter[tuple[int, int]] = field(default_factory=Counter)  # rounds by (n_drafted, n_accepted)
    _overlap: float = 0.0  # sum over verified tokens of sum(min(p, q))

    def add(self, n_drafted: int, n_accepted: int, n_tokens: int, overlap: float) -> None:
        """Count a round of one sequence; `overlap` is the sum over its verified tokens of sum(min(p, q))."""
        self._outcomes[n_drafted, n_accepted] += 1
        self.n_tokens += n_tokens
        self._overlap += overlap

    @property
    def n_rounds(self) -> int:
        """Number of rounds; a round counts once for each sequence."""
        return self._outcomes.total()

    @property
    def max_draft_length(self) -> int:
        """Largest number of tokens drafted in a round."""
        return max((drafted for drafted, _ in self._outcomes), default=0)

    @property
    def histogram(self) -> list[int]:
        """Number of rounds by accepted tokens: index 0, 1, 2, ..."""
        counts = [0] * (self.max_draft_length + 1)
        for (_, accepted), n in self._outcomes.items():
            counts[accepted] += n
        return counts

    @property
    def positions(self) -> list[Position]:
        """Counts by position of a drafted token in its round."""
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
        """Mean acceptance probability: sum(min(p, q)) averaged over verified tokens; independent of k."""
        n_verified = sum(position.n_verified for position in self.positions)
        return self._overlap / n_verified if n_verified else None

    @property
    def tau(self) -> float | None:
        """Acceptance length: tokens per round, bonus token included."""
        return self.n_tokens / self.n_rounds if self.n_rounds else None

    @property
    def seconds(self) -> float:
        """Time of all rounds."""
        return self.draft_seconds + self.verify_seconds + self.sample_seconds + self.host_seconds
