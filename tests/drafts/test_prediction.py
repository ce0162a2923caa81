"""Speed-ups follow from counts and costs by the formula, and intervals from prompts and repetitions drawn anew."""

import math

import pytest
import torch

from gptfast_cli.core.drafts.acceptance import AcceptanceProbs
from gptfast_cli.core.drafts.costs import BenchPoint, CostCell, Costs
from gptfast_cli.core.drafts.prediction import Bootstrap, Prediction, break_even, interval
from gptfast_cli.core.drafts.report import RoundCost
from gptfast_cli.core.drafts.texts import JudgePrompt, TargetText
from gptfast_cli.core.engine.sampling import Sampler, Sampling

STEP = 0.01
K = 4


def alike(alpha: float, *, n_texts: int = 20, length: int = 200) -> AcceptanceProbs:
    """Texts with the same acceptance probability at every token."""
    return acceptance_probs(torch.full((n_texts,), alpha), length)


def acceptance_probs(alphas: torch.Tensor, length: int) -> AcceptanceProbs:
    n = len(alphas)
    p_accept = alphas.double().view(n, 1, 1).expand(n, length, K)
    overlap = alphas.double().view(n, 1).expand(n, length).clone()
    overlap[:, 0] = torch.nan
    counts = torch.full((n,), length)
    return AcceptanceProbs(p_accept, torch.full((n, length), K), counts, counts + 9, overlap)


def predicted(of: AcceptanceProbs, seed: int = 0) -> Prediction:
    return Prediction(of, Bootstrap.of(len(of.lengths), seed))


def costs(batch_size: int, *ratios: float) -> tuple[Costs, CostCell]:
    point = BenchPoint(0.0, batch_size)
    cell = CostCell("draft", K, point)
    parts = [RoundCost(0.25 * r * STEP, 0.5 * r * STEP, 0.15 * r * STEP, 0.1 * r * STEP) for r in ratios]
    return Costs({point: [STEP]}, {point: 1}, {cell: [(each, STEP) for each in parts]}), cell


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.9, 1.0])
def test_alike_tokens_give_the_geometric_sum(alpha: float) -> None:
    tau = predicted(alike(alpha, length=2000)).tau(K)
    assert tau.value == pytest.approx(sum(alpha**n for n in range(K + 1)), rel=5e-3)
    assert tau.low == pytest.approx(tau.value) and tau.high == pytest.approx(tau.value), "all prompts are alike"


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_speed_up_is_tau_over_the_rounds_cost_in_steps(batch_size: int) -> None:
    prediction, (known, cell) = predicted(alike(0.8)), costs(batch_size, 1.6, 1.5, 1.7)
    cell = prediction.grid_cell(cell, known)
    assert cell.predicted.value == pytest.approx(prediction.tau(K).value / 1.6, rel=1e-9)
    assert cell.ceiling == pytest.approx(5 / 1.6)
    assert cell.cost.total == pytest.approx(1.6 * STEP)
    assert cell.token_seconds == pytest.approx(STEP / cell.predicted.value)
    assert cell.tok_s == pytest.approx(batch_size * cell.predicted.value / STEP)
    assert cell.predicted.low < cell.predicted.value < cell.predicted.high, "repetitions of costs differ"


def test_where_nothing_is_proposed_a_batch_waits_for_those_who_verify() -> None:
    some = alike(0.5, n_texts=8)
    proposed = torch.where(torch.arange(200) % 2 == 0, K, 0).expand(8, 200)
    partly = AcceptanceProbs(some.p_accept, proposed, some.lengths, some.most, some.overlap)
    (known, cell), (many, at_eight) = costs(1, 3.0), costs(8, 3.0)
    alone, batched = predicted(partly).grid_cell(cell, known), predicted(partly).grid_cell(at_eight, many)
    assert batched.predicted.value < 0.9 * alone.predicted.value


def test_break_even_is_where_the_predicted_speed_up_is_one() -> None:
    for ratio in (1.2, 2.5, 4.9):
        alpha = break_even(K, ratio)
        assert sum(alpha**n for n in range(K + 1)) == pytest.approx(ratio, abs=1e-6)
    assert break_even(K, 0.9) == 0.0
    assert break_even(K, 5.1) is None


def test_intervals_are_as_wide_as_prompts_differ() -> None:
    generator = torch.Generator().manual_seed(0)
    alphas = 0.7 + 0.1 * torch.randn(100, generator=generator)
    alpha = predicted(acceptance_probs(alphas, 50)).alpha()
    expected = 1.96 * float(alphas.std()) / math.sqrt(len(alphas))
    assert alpha.value == pytest.approx(float(alphas.mean()), abs=1e-6)
    assert (alpha.high - alpha.low) / 2 == pytest.approx(expected, rel=0.1)


def test_drafts_are_compared_on_the_same_prompts() -> None:
    generator = torch.Generator().manual_seed(0)
    alphas = (0.6 + 0.1 * torch.randn(40, generator=generator)).clamp(0.1, 0.9)
    known, cell = costs(1, 2.0)
    one, other = (predicted(acceptance_probs(each, 50)).speedups(cell, known) for each in (alphas, alphas + 0.02))
    assert bool((other > one).all()), "the better draft is better in every sample"
    assert interval(one).low < interval(other).value < interval(one).high, "though the intervals overlap"


def test_slices_stand_for_their_own_tokens() -> None:
    alphas = torch.tensor([0.2, 0.2, 0.8, 0.8])
    texts = [
        TargetText(JudgePrompt((1,), "odd" if n < 2 else "even"), (1,) * 50, 50, Sampler(Sampling(), 0))
        for n in range(4)
    ]
    slices = {each.name: each for each in predicted(acceptance_probs(alphas, 50)).slices(texts)}
    assert slices["odd"].alpha.value == pytest.approx(0.2) and slices["even"].alpha.value == pytest.approx(0.8)
    assert slices["odd"].n_tokens == 2 * 49
    contexts = [each for each in slices.values() if each.kind == "context"]
    assert sum(each.n_tokens for each in contexts) == 4 * 49 and len(contexts) == 3


def test_the_same_seed_gives_the_same_intervals() -> None:
    generator = torch.Generator().manual_seed(0)
    alphas = torch.rand(30, generator=generator)
    first, second, third = (predicted(acceptance_probs(alphas, 50), seed).alpha() for seed in (1, 1, 2))
    assert first == second and first != third
