"""Which drafted tokens a target accepts, and the token that follows them: exactly the target's law, whatever the draft.

Speculative sampling (Leviathan et al. 2023, arXiv:2211.17192; Chen et al. 2023, arXiv:2302.01318): a token d that was
drawn from q is accepted with probability min(1, p(d) / q(d)); the first that is not is replaced by a draw from
max(p - q, 0), made to sum to 1; after the last, one more is drawn from p. Rows are independent of each other.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from gptfast_cli.core.decode.sampler import invert


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
    p: Tensor, q: Tensor, drafted: Tensor, depths: Tensor, *, acceptance_uniforms: Tensor, token_uniforms: Tensor
) -> Verification:
    """Verify rows of drafted tokens, of which row r has depths[r]; what stands behind these counts for nothing.

    p:                   [rows, depth + 1, vocab] probabilities of the target
    q:                   [rows, depth, vocab] those that the drafted tokens [rows, depth] int64 were drawn from; zeros
                         where a draft could not tell: what it drafted there does not stay
    depths:              [rows] int64
    acceptance_uniforms: [rows, depth] numbers in [0, 1), unrelated to those that the tokens were drawn with
    token_uniforms:      [rows, depth + 1], unrelated to all of these
    """
    depth, at = drafted.shape[1], drafted.unsqueeze(-1)
    p_drafted, q_drafted = p[:, :depth].gather(-1, at).squeeze(-1), q.gather(-1, at).squeeze(-1)
    # "<": the smallest uniform is 0, and must not accept what the target never says
    is_accepted = (acceptance_uniforms * q_drafted < p_drafted) & (q_drafted > 0)
    n_accepted = _leading(is_accepted, depths)
    rows = torch.arange(len(p), device=p.device)
    p_next = p[rows, n_accepted]
    behind = q.new_zeros(len(q), 1, q.shape[-1])  # after all of them nothing was drafted: what is left of p is p
    q_next = torch.cat([q, behind], dim=1)[rows, n_accepted]
    q_next = torch.where((n_accepted < depths).unsqueeze(-1), q_next, 0)
    rest = (p_next - q_next).clamp(min=0)
    # nothing is left where both laws are equal but for rounding
    rest = torch.where(rest.sum(dim=-1, keepdim=True) == 0, p_next, rest)
    tokens = invert(rest, token_uniforms[rows, n_accepted])
    chances = torch.minimum(p[:, :depth], q).sum(dim=-1).nan_to_num(0)
    places = torch.arange(depth, device=p.device)
    is_looked_at = places < torch.minimum(n_accepted + 1, depths).unsqueeze(-1)
    return Verification(n_accepted, tokens, torch.where(is_looked_at, chances, 0).sum(dim=-1))


def verify_greedy(best: Tensor, drafted: Tensor, depths: Tensor) -> Verification:
    """The same where the target takes its most probable tokens, `best` [rows, depth + 1] int64: equal ones stay."""
    is_equal = best[:, : drafted.shape[1]] == drafted
    n_accepted = _leading(is_equal, depths)
    tokens = best[torch.arange(len(best), device=best.device), n_accepted]
    return Verification(n_accepted, tokens, n_accepted.float())


def _leading(is_accepted: Tensor, depths: Tensor) -> Tensor:
    """How many of each row are accepted before the first that is not, or that was not drafted."""
    is_drafted = torch.arange(is_accepted.shape[1], device=is_accepted.device) < depths.unsqueeze(-1)
    return (is_accepted & is_drafted).long().cumprod(dim=-1).sum(dim=-1)
