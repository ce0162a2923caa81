"""Counts of rounds along texts are those of the process itself, summed over every draft and every decision."""

import itertools

import pytest
import torch
from torch import Tensor

from gptfast_cli.core.drafts.acceptance import AcceptanceProbs, block_acceptance, expected

VOCAB, LENGTH = 3, 5
Prefix = tuple[int, ...]


class Pair:
    """Distributions of a target and a draft after every beginning of a text, which depend on all of it."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        beginnings = [p for n in range(LENGTH + 9) for p in itertools.product(range(VOCAB), repeat=min(n, LENGTH))]
        probs = (2 * torch.randn(2, len(beginnings), VOCAB, generator=generator, dtype=torch.float64)).softmax(-1)
        self._p, self._q = (dict(zip(beginnings, each, strict=True)) for each in probs)

    def p(self, beginning: Prefix) -> Tensor:
        return self._p[beginning[:LENGTH]]

    def q(self, beginning: Prefix) -> Tensor:
        return self._q[beginning[:LENGTH]]

    def rounds(self, text: Prefix, k: int) -> float:
        """Expected rounds from here to the end of the text, all of its continuations taken together."""
        draft_length = min(k, LENGTH - len(text) - 1)
        if len(text) >= LENGTH:
            return 0.0
        return (draft_length > 0) + sum(prob * self.rounds(given, k) for given, prob in self._round(text, draft_length))

    def _round(self, text: Prefix, draft_length: int) -> list[tuple[Prefix, float]]:
        """What a round of speculative sampling gives, and how probable that is."""
        if draft_length == 0:
            return [((*text, x), float(self.p(text)[x])) for x in range(VOCAB)]
        outcomes = []
        for block in itertools.product(range(VOCAB), repeat=draft_length):
            drafted, reach, ends = 1.0, 1.0, [((self.p(text) - self.q(text)).clamp(min=0), 1.0)]
            for n, x in enumerate(block, 1):
                before, after = (*text, *block[: n - 1]), (*text, *block[:n])
                drafted *= float(self.q(before)[x])
                reach = min(1.0, reach * float(self.p(before)[x] / self.q(before)[x]))
                rest = self.p(after) if n == draft_length else (reach * self.p(after) - self.q(after)).clamp(min=0)
                goes_on = reach if n == draft_length else float(rest.sum() / (rest.sum() + 1 - reach))
                ends = [(each, prob * (1 - goes_on)) for each, prob in ends] + [(rest, goes_on)]
            for n, (rest, prob) in enumerate(ends):
                last = rest / rest.sum()
                outcomes += [((*text, *block[:n], y), drafted * prob * float(last[y])) for y in range(VOCAB) if prob]
        return outcomes

    def texts(self) -> tuple[Tensor, Tensor]:
        """All texts after a first token 0 [texts, LENGTH], and their probabilities."""
        tails = list(itertools.product(range(VOCAB), repeat=LENGTH - 1))
        texts = [(0, *tail) for tail in tails]
        acceptance_probs = [torch.stack([self.p(text[:n])[text[n]] for n in range(1, LENGTH)]).prod() for text in texts]
        return torch.tensor(texts), torch.stack(acceptance_probs)

    def acceptance_probs(self, texts: Tensor, max_draft_length: int) -> AcceptanceProbs:
        ratios = torch.zeros(len(texts), LENGTH + max_draft_length, dtype=torch.float64)
        for row, text in enumerate(texts.tolist()):
            for n in range(1, LENGTH):
                p, q = self.p(tuple(text[:n])), self.q(tuple(text[:n]))
                ratios[row, n] = (q / p)[text[n]]
        lengths = torch.full((len(texts),), LENGTH)
        proposed = torch.full((len(texts), LENGTH), max_draft_length)
        p_accept = block_acceptance(ratios.unfold(1, max_draft_length, 1)[:, :LENGTH])
        return AcceptanceProbs(p_accept, proposed, lengths, lengths, ratios[:, :LENGTH].clamp(max=1))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("k", [1, 2, 3])
def test_rounds_of_all_texts_are_those_of_the_process(seed: int, k: int) -> None:
    pair = Pair(seed)
    texts, probabilities = pair.texts()
    counts = expected(pair.acceptance_probs(texts, 3), k)
    assert probabilities.sum() == pytest.approx(1, abs=1e-12)
    assert float(probabilities @ counts.n_rounds) == pytest.approx(pair.rounds((0,), k), abs=1e-12)


def of(
    p_accept: list[float], *, most: int | None = None, n_proposed: list[int] | None = None, k: int = 4
) -> AcceptanceProbs:
    """A single text whose token n is accepted with probability p_accept[n]."""
    n = len(p_accept)
    padded = torch.tensor([[*p_accept, *[0.0] * k]], dtype=torch.float64)
    proposed = torch.tensor([n_proposed or [k] * n])
    return AcceptanceProbs(
        padded.unfold(1, k, 1)[:, :n], proposed, torch.tensor([n]), torch.tensor([most or n]), padded[:, :n]
    )


@pytest.mark.parametrize(
    ("p_accept", "k", "n_rounds"),
    [
        ([0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1], 4, 2),  # ten tokens, five a round
        ([0, 0, 0, 0, 0], 4, 4),
        ([0, 1, 0, 1, 0, 1, 0], 2, 3),
        ([0, 1, 1, 0, 1, 1, 1, 1, 1], 4, 2),
    ],
)
def test_acceptance_probabilities_of_0_and_1_give_whole_counts(p_accept: list[float], k: int, n_rounds: int) -> None:
    counts = expected(of(p_accept, most=99), k)
    assert counts.n_rounds.tolist() == [n_rounds] and counts.n_plain.tolist() == [0]


def test_the_last_token_of_all_that_there_may_be_is_a_plain_step() -> None:
    counts = expected(of([0, 0, 0, 0]), 4)
    assert counts.n_rounds.tolist() == [2] and counts.n_plain.tolist() == [1]


def test_where_nothing_is_proposed_plain_steps_follow() -> None:
    acceptance_probs = of([0, 1, 1, 1, 1, 1, 1, 1], most=99, n_proposed=[0, 0, 4, 4, 4, 4, 4, 4])
    assert [float(x) for x in (expected(acceptance_probs, 4).n_rounds, expected(acceptance_probs, 4).n_plain)] == [2, 1]
    skipping = expected(acceptance_probs, 4, n_undrafted=4)
    assert [float(x) for x in (skipping.n_rounds, skipping.n_plain)] == [1, 4]


def test_positions_are_reached_one_after_another() -> None:
    counts = expected(of([0.0, *[0.5] * 400], most=9999), 3)
    drafted, reached, accepted = (each.sum(0) for each in (counts.n_drafted, counts.n_reached, counts.n_accepted))
    assert (accepted / reached).tolist() == pytest.approx([0.5, 0.5, 0.5], abs=0.01)
    assert (accepted / drafted).tolist() == pytest.approx([0.5, 0.25, 0.125], abs=0.01)
    assert float(400 / counts.n_rounds) == pytest.approx(1 + 0.5 + 0.25 + 0.125, rel=0.01)


def test_the_first_texts_stand_for_themselves() -> None:
    pair = Pair(1)
    texts, _ = pair.texts()
    whole, few = (
        expected(acceptance_probs, 2)
        for acceptance_probs in (pair.acceptance_probs(texts, 2), pair.acceptance_probs(texts, 2).of(3))
    )
    assert few.n_rounds.tolist() == whole.n_rounds[:3].tolist()
