"""How many rounds a text takes, from the chance that each of its tokens, once drafted, would have stayed.

A text of the target's own is what speculation would have given, whatever drafted it. Given the text, the draft proposed
its next token x, and x stayed, with probability min(p, q)(x) / p(x) = min(1, q(x) / p(x)); else the round ended with x.
So the places where rounds begin are a Markov chain along the text, whose expected visits are counted from its start to
its end, for every depth from the same chances: nothing is assumed of how easy and hard tokens follow one another. Where
tokens are not drawn, chances are 0 or 1, and the counts those of the engine.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Chances:
    """Of a proposer, along texts of which `n` tokens are there when a round begins.

    stays:      [texts, n, place] float64, the chance that the token drafted at a place stays where those before it did
    n_proposed: [texts, n] int64, how many it drafts at most
    lengths, most: [texts] int64, tokens of each text, and what it might have come to
    overlap:    [texts, token] float64, sum of min(p, q) for each token of a text, NaN where there is none
    """

    stays: Tensor
    n_proposed: Tensor
    lengths: Tensor
    most: Tensor
    overlap: Tensor

    def of(self, n_texts: int) -> "Chances":
        """Those along the first texts."""
        return Chances(*(getattr(self, name)[:n_texts] for name in self.__slots__))


@dataclass(frozen=True, slots=True)
class Expected:
    """Expected counts for each text: [texts] float64, and by place [texts, k].

    n_rounds: that drafted something; n_plain: plain steps between them
    n_drafted, n_reached, n_accepted: rounds that drafted a token at a place, that kept all before it, and that kept it
    """

    n_rounds: Tensor
    n_plain: Tensor
    n_drafted: Tensor
    n_reached: Tensor
    n_accepted: Tensor


def expected(chances: Chances, k: int, *, n_undrafted: int = 1) -> Expected:
    """What rounds of depth k come to; where nothing is proposed, `n_undrafted` plain steps follow."""
    n_texts, time, deepest = chances.stays.shape
    assert 0 < k <= deepest
    visits = torch.zeros(n_texts, time + k + n_undrafted + 1, dtype=torch.float64)
    visits[:, 1] = 1  # the first token is the prefill's
    n_rounds, n_plain = torch.zeros(n_texts, dtype=torch.float64), torch.zeros(n_texts, dtype=torch.float64)
    n_drafted, n_reached, n_accepted = (torch.zeros(n_texts, k, dtype=torch.float64) for _ in range(3))
    for n in range(1, int(chances.lengths.max())):
        here = torch.where(n < chances.lengths, visits[:, n], 0.0)
        depth = torch.minimum(chances.n_proposed[:, n], chances.most - n - 1).clamp(0, k)
        skipped = torch.where(depth == 0, here, 0.0)
        n_skipped = torch.minimum(torch.full_like(depth, n_undrafted), chances.lengths - n).clamp(min=0)
        n_plain += skipped * n_skipped
        visits[:, n + n_undrafted] += skipped
        reaching = here - skipped
        n_rounds += reaching
        for place in range(k):
            drafting = torch.where(place < depth, reaching, 0.0)
            n_drafted[:, place] += torch.where(place < depth, here, 0.0)
            n_reached[:, place] += drafting
            staying = drafting * chances.stays[:, n, place]
            n_accepted[:, place] += staying
            # the others end with the token that takes the place of this one, or that follows all of them
            visits[:, n + place + 1] += reaching - staying
            reaching = staying
        visits[:, n + k + 1] += reaching
    return Expected(n_rounds, n_plain, n_drafted, n_reached, n_accepted)
