"""Verification of drafted tokens, and the statistics of rounds.

Block verification (Sun et al. 2024, arXiv:2403.10444): with p_n and q_n the distributions of the target and the draft
after n drafted tokens d_1 ... d_n, of k, let

    a_0 = 1,  a_n = min(1, a_(n-1) p_(n-1)(d_n) / q_(n-1)(d_n))
    r_n(x) = max(a_n p_n(x) - q_n(x), 0),  R_n = sum r_n(x)
    h_n = R_n / (R_n + 1 - a_n) for n < k,  h_k = a_k

The largest n >= 1 whose own uniform number is below h_n is how many tokens are accepted, 0 if there is none. A token
follows that is drawn from r_n / R_n, or, if all are accepted, a bonus token from p_k. The emitted tokens have the
target's distribution, and n or more tokens are accepted with probability a_n: no fewer in expectation than by deciding
token by token with min(1, p / q) (Leviathan et al. 2023, arXiv:2211.17192), which is the same for k = 1.

Rows are independent of each other. The CPU engine has the same rules in native/verify.h; tests/backends/
test_cpu_rounds.py holds both equal.
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
    overlap:    [rows], sum over the accepted tokens and the one after them of sum(min(p, q)), the probability that
                a single drafted token is accepted
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
    k, rows = drafted.shape[1], torch.arange(len(p), device=p.device)
    lengths = torch.minimum(draft_lengths, _leading(p.isfinite().all(dim=-1)))  # what follows is not verified
    padding = q.new_zeros(len(q), 1, q.shape[-1])
    q = torch.cat([q, padding], dim=1)
    p_drafted, q_drafted = (each[:, :k].gather(-1, drafted.unsqueeze(-1)).squeeze(-1) for each in (p, q))
    ratios = torch.where(q_drafted > 0, p_drafted / q_drafted, 0)
    reach = p.new_ones(len(p))  # a_n, below
    n_accepted, reach_accepted = torch.zeros_like(lengths), reach
    for n in range(1, k + 1):
        reach = (reach * ratios[:, n - 1]).clamp(max=1)
        rest = _residual(p[:, n], q[:, n], reach).sum(dim=-1)
        goes_on = torch.where(reach < 1, rest / (rest + 1 - reach), 1)  # 1 where all of p_n is in q_n, too
        # "<": a uniform of 0 must not accept a token of probability 0
        is_accepted = (acceptance_uniforms[:, n - 1] < torch.where(n < lengths, goes_on, reach)) & (n <= lengths)
        n_accepted = torch.where(is_accepted, n, n_accepted)
        reach_accepted = torch.where(is_accepted, reach, reach_accepted)
    p_next = p[rows, n_accepted]
    # all accepted: the residual is p
    q_next = torch.where((n_accepted < lengths).unsqueeze(-1), q[rows, n_accepted], 0)
    rest = _residual(p_next, q_next, torch.where(n_accepted < lengths, reach_accepted, 1))
    # p == q up to rounding leaves no residual
    rest = torch.where(rest.sum(dim=-1, keepdim=True) == 0, p_next, rest)
    tokens = sample_inverse_cdf(rest, token_uniforms[rows, n_accepted])
    accept_probs = torch.minimum(p, q)[:, :k].sum(dim=-1).nan_to_num(0)
    position = torch.arange(k, device=p.device)
    is_looked_at = position < torch.minimum(n_accepted + 1, draft_lengths).unsqueeze(-1)
    return Verification(n_accepted, tokens, torch.where(is_looked_at, accept_probs, 0).sum(dim=-1))


def _residual(p: Tensor, q: Tensor, reach: Tensor) -> Tensor:
    """r_n [rows, vocab] of p_n, q_n [rows, vocab] and a_n [rows]."""
    return (reach.unsqueeze(-1) * p - q).clamp(min=0)


def verify_greedy(best: Tensor, drafted: Tensor, draft_lengths: Tensor) -> Verification:
    """Verify greedily: accept drafted tokens while they equal the target's argmax, `best` [rows, k + 1] int64."""
    is_equal = best[:, : drafted.shape[1]] == drafted
    n_accepted = torch.minimum(_leading(is_equal), draft_lengths)
    tokens = best[torch.arange(len(best), device=best.device), n_accepted]
    return Verification(n_accepted, tokens, n_accepted.float())


def _leading(is_so: Tensor) -> Tensor:
    """Number of leading True of each row."""
    return is_so.long().cumprod(dim=-1).sum(dim=-1)


@dataclass(frozen=True, slots=True)
class Position:
    """Number of rounds that drafted, verified and accepted a token at this position.

    A token counts as verified where all tokens before it were accepted.
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
