"""Divergence is what its formulas say, in float64, however the positions come in pieces and whatever the logits are."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gptfast_cli.core.checkpoints.store import bundled_folder
from gptfast_cli.core.engine.build import RuntimeConfig
from gptfast_cli.core.engine.load import LoadedModel, load
from gptfast_cli.core.errors import GptFastError, UsageError
from gptfast_cli.core.evals.divergence import Comparison, Divergence, batched_mean
from model_files import drained, settings_in

INF = math.inf
VOCAB = 5

logit = st.one_of(
    st.floats(-30, 30, width=32),
    st.floats(width=32, allow_nan=False, allow_infinity=False),
    st.sampled_from([0.0, 1e-30, 88.0, -104.0, 1000.0, 3.4e38, -3.4e38]),
)
ruled_out = st.just(-INF)
row = st.tuples(logit, *[st.one_of(logit, ruled_out)] * (VOCAB - 1)).flatmap(st.permutations)
position = st.tuples(row, row, st.integers(0, VOCAB - 1))


def compared(
    reference: Tensor, other: Tensor, targets: Tensor, *, piece: int = 10_000, block_logits: int = 1 << 20
) -> Divergence:
    comparison = Comparison(block_logits)
    for part in zip(reference.split(piece), other.split(piece), targets.split(piece), strict=True):
        comparison.add(*part)
    return comparison.result()


def of_rows(reference: Sequence[Sequence[float]], other: Sequence[Sequence[float]]) -> Divergence:
    return compared(torch.tensor(reference), torch.tensor(other), torch.zeros(len(reference), dtype=torch.int64))


def some_logits(n: int, vocab: int = 50, *, apart: float = 0.5) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    reference = 3 * torch.randn(n, vocab, generator=generator)
    other = reference + apart * torch.randn(n, vocab, generator=generator)
    return reference, other, torch.randint(vocab, (n,), generator=generator)


def logarithms(logits: Sequence[float]) -> list[float]:
    top = max(logits)
    log_total = math.log(math.fsum(math.exp(each - top) for each in logits))
    return [each - top - log_total for each in logits]


def term(log_p: float, log_q: float) -> float:
    """P (log p - log q), a p that float64 cannot hold being 0."""
    return math.exp(log_p) * (log_p - log_q) if math.exp(log_p) > 0 else 0.0


def by_hand(reference: Sequence[Sequence[float]], other: Sequence[Sequence[float]]) -> tuple[list[float], float, float]:
    """KLD of each position, mean alpha and same-top-1, by plain loops."""
    klds, alphas, same = [], [], []
    for p_logits, q_logits in zip(reference, other, strict=True):
        pairs = list(zip(logarithms(p_logits), logarithms(q_logits), strict=True))
        klds.append(math.fsum(term(*pair) for pair in pairs))
        alphas.append(math.fsum(math.exp(min(pair)) for pair in pairs))
        same.append(list(p_logits).index(max(p_logits)) == list(q_logits).index(max(q_logits)))
    return klds, sum(alphas) / len(alphas), sum(same) / len(same)


def test_two_tokens_come_out_as_on_paper() -> None:
    p, q = (0.75, 0.25), (0.5, 0.5)
    logits = [torch.tensor([each], dtype=torch.float64).log() for each in (p, q)]
    found = compared(*logits, torch.tensor([1]))
    assert found.kld_mean == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5), rel=1e-14)
    assert found.alpha == pytest.approx(0.75, rel=1e-14)
    assert (found.ppl_reference, found.ppl_other) == (pytest.approx(4), pytest.approx(2))
    assert found.ppl_ratio == pytest.approx(0.5)


def test_a_model_beside_itself_has_no_divergence_to_the_last_bit() -> None:
    reference, _, targets = some_logits(200)
    found = compared(reference, reference, targets)
    assert (found.tokens, found.kld_mean, found.kld_p99, found.kld_max) == (200, 0, 0, 0)
    assert (found.same_top1, found.alpha, found.ppl_ratio) == (1, 1, 1)


def test_models_that_share_no_token_are_infinitely_far() -> None:
    found = of_rows([[0.0, -INF]], [[-INF, 0.0]])
    assert (found.kld_mean, found.kld_p99, found.kld_max) == (INF, INF, INF)
    assert (found.alpha, found.same_top1) == (0, 0)


def test_a_token_that_both_rule_out_adds_nothing() -> None:
    assert of_rows([[1.0, 2.0, -INF]], [[2.0, 1.0, -INF]]) == of_rows([[1.0, 2.0]], [[2.0, 1.0]])


def test_what_only_the_reference_rules_out_costs_finitely_and_what_only_the_other_does_infinitely() -> None:
    assert of_rows([[0.0, -INF]], [[0.0, 0.0]]).kld_mean == pytest.approx(math.log(2))
    assert of_rows([[0.0, 0.0]], [[0.0, -INF]]).kld_mean == INF


def test_divergence_is_that_of_the_other_from_the_reference() -> None:
    assert of_rows([[0.0, 0.0]], [[0.0, 2.0]]).kld_mean != pytest.approx(of_rows([[0.0, 2.0]], [[0.0, 0.0]]).kld_mean)


def test_a_text_that_a_model_rules_out_has_infinite_perplexity() -> None:
    found = of_rows([[0.0, 0.0]], [[-INF, 0.0]])
    assert (found.ppl_reference, found.ppl_other, found.ppl_ratio) == (pytest.approx(2), INF, INF)
    assert math.isnan(of_rows([[-INF, 0.0]], [[-INF, 0.0]]).ppl_ratio)


def test_perplexity_is_over_all_positions_and_not_the_mean_of_the_pieces() -> None:
    reference, other, targets = some_logits(7)
    found = compared(reference, other, targets, piece=3)
    for logits, perplexity in ((reference, found.ppl_reference), (other, found.ppl_other)):
        nll = [-logarithms(row)[target] for row, target in zip(logits.tolist(), targets.tolist(), strict=True)]
        assert perplexity == pytest.approx(math.exp(sum(nll) / 7), rel=1e-12)
    assert found.ppl_ratio == pytest.approx(found.ppl_other / found.ppl_reference, rel=1e-12)


def test_among_equal_logits_the_lowest_id_is_the_first() -> None:
    assert of_rows([[1.0, 3.0, 3.0]], [[0.0, 3.0, 2.0]]).same_top1 == 1
    assert of_rows([[1.0, 3.0, 3.0]], [[0.0, 2.0, 3.0]]).same_top1 == 0


def test_logits_that_differ_by_less_than_their_probabilities_are_no_tie() -> None:
    assert of_rows([[0.0, 1e-30]], [[1e-30, 0.0]]).same_top1 == 0


@pytest.mark.parametrize(("n", "rank"), [(1, 1), (2, 2), (99, 99), (100, 99), (101, 100), (200, 198)])
def test_p99_is_the_nearest_rank(n: int, rank: int) -> None:
    reference = torch.zeros(n, 2)
    other = torch.zeros(n, 2)
    other[:, 1] = torch.randperm(n, generator=torch.Generator().manual_seed(0)) / n  # farther apart as it grows
    found = compared(reference, other, torch.zeros(n, dtype=torch.int64))
    klds, _, _ = by_hand(reference.tolist(), other.tolist())
    assert found.kld_p99 == pytest.approx(sorted(klds)[rank - 1], rel=1e-9)
    assert found.kld_max == pytest.approx(max(klds), rel=1e-9)


@pytest.mark.parametrize("piece", [1, 7, 64, 99])
def test_the_pieces_that_positions_come_in_change_nothing(piece: int) -> None:
    logits = some_logits(100, 333)
    whole = dataclasses.astuple(compared(*logits))
    again = compared(*logits, piece=piece, block_logits=5 * 333)
    assert dataclasses.astuple(again) == pytest.approx(whole, rel=1e-12)


def test_a_vocabulary_larger_than_a_block_goes_one_position_at_a_time() -> None:
    logits = some_logits(20)
    whole = dataclasses.astuple(compared(*logits))
    assert dataclasses.astuple(compared(*logits, block_logits=10)) == pytest.approx(whole, rel=1e-12)


def test_a_constant_added_to_the_logits_changes_nothing() -> None:
    reference, other, targets = some_logits(50)
    reference, other = reference.bfloat16().double(), other.bfloat16().double()  # so that the sums are exact
    shifted = compared(reference + 1024, other - 4096, targets)
    plain = compared(reference, other, targets)
    assert dataclasses.astuple(shifted) == pytest.approx(dataclasses.astuple(plain), rel=1e-12)


def test_a_divergence_too_small_for_float32_is_measured() -> None:
    reference, noise, targets = some_logits(20, apart=1.0)
    reference = reference.double()
    noise = (noise - reference) * 1e-6
    found = compared(reference, reference + noise, targets)
    p = reference.softmax(dim=-1)  # to the second order, KLD is half the variance of the noise
    second_order = ((p * noise**2).sum(-1) - (p * noise).sum(-1) ** 2) / 2
    assert found.kld_mean == pytest.approx(second_order.mean().item(), rel=1e-3)
    assert 0 < found.kld_mean < 1e-12


def test_rounding_never_makes_a_divergence_negative() -> None:
    reference, noise, targets = some_logits(1)
    for scale in range(1, 60):
        other = reference.double() + noise.double() * scale * 1e-13
        assert compared(reference, other, targets).kld_mean >= 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_any_float_dtype_is_taken_for_the_numbers_it_holds(dtype: torch.dtype) -> None:
    reference, other, targets = some_logits(10)
    reference, other = reference.bfloat16().float(), other.bfloat16().float()
    assert compared(reference.to(dtype), other.to(dtype), targets) == compared(reference, other, targets)


@given(st.lists(position, min_size=1, max_size=4))
def test_any_logits_give_what_plain_loops_give(positions: list[tuple[list[float], list[float], int]]) -> None:
    reference, other, targets = (torch.tensor(part) for part in zip(*positions, strict=True))
    found = compared(reference, other, targets)
    klds, alpha, same_top1 = by_hand(reference.tolist(), other.tolist())
    assert found.kld_mean >= 0 and 0 <= found.alpha <= 1
    assert found.kld_mean == pytest.approx(sum(klds) / len(klds), rel=1e-12, abs=1e-14)
    assert found.kld_max == found.kld_p99 == pytest.approx(max(klds), rel=1e-12, abs=1e-14)
    assert found.alpha == pytest.approx(alpha, abs=1e-14)
    assert found.same_top1 == pytest.approx(same_top1)


@pytest.mark.parametrize("bad", [math.nan, INF])
@pytest.mark.parametrize("column", [0, 17, 49])
def test_logits_that_are_no_numbers_are_named_by_model_and_position(bad: float, column: int) -> None:
    reference, other, targets = some_logits(6)
    comparison = Comparison()
    comparison.add(reference, other, targets)
    other[3, column] = bad
    with pytest.raises(GptFastError, match="other model's logits at position 9"):
        comparison.add(reference, other, targets)
    with pytest.raises(GptFastError, match="reference's logits at position 9"):
        comparison.add(other, reference, targets)
    assert comparison.result().tokens == 6


def test_a_position_with_every_token_ruled_out_is_an_error() -> None:
    with pytest.raises(GptFastError, match="position 0"):
        of_rows([[-INF, -INF]], [[0.0, 0.0]])


def test_vocabularies_of_other_sizes_are_a_usage_error() -> None:
    with pytest.raises(UsageError, match="32000 tokens and the other model for 32064"):
        Comparison().add(torch.zeros(1, 32000), torch.zeros(1, 32064), torch.zeros(1, dtype=torch.int64))


def test_the_bundled_draft_is_accepted_as_often_as_the_recipe_says(tmp_path: Path) -> None:
    settings, runtime = settings_in(tmp_path), RuntimeConfig(device="cpu", dtype="float32", backend="reference")
    tiny, draft = (drained(load(name, settings, runtime))[1] for name in ("tiny", "tiny-draft"))
    comparison = Comparison()
    for text in held_out_documents()[::10]:
        assert tiny.tokenizer is not None
        tokens = torch.tensor(tiny.tokenizer.encode(text))
        comparison.add(logits_along(tiny, tokens), logits_along(draft, tokens), tokens[1:])
    assert comparison.result().alpha == pytest.approx(0.960, abs=0.01)


def held_out_documents() -> list[str]:
    return (bundled_folder("tiny").parent / "heldout.txt").read_text().strip().split("\n\n")


def logits_along(loaded: LoadedModel, tokens: Tensor) -> Tensor:
    model = loaded.model
    return model.logits(model.forward(tokens[None, :-1], model.new_cache(1)))[0]


def test_flips_and_changes_of_probability_are_those_of_the_texts_own_tokens() -> None:
    reference, other, targets = some_logits(300, 4)
    found = compared(reference, other, targets)
    flips, squares = 0, 0.0
    for p_logits, q_logits, target in zip(reference.tolist(), other.tolist(), targets.tolist(), strict=True):
        flips += (p_logits.index(max(p_logits)) == target) != (q_logits.index(max(q_logits)) == target)
        squares += (math.exp(logarithms(q_logits)[target]) - math.exp(logarithms(p_logits)[target])) ** 2
    assert found.flips == pytest.approx(flips / 300) and 0 < flips < 300
    assert found.rms_p_change == pytest.approx(math.sqrt(squares / 300), rel=1e-12)


def test_other_words_for_a_wrong_token_are_no_flip() -> None:
    found = of_rows([[0.0, 1.0, 2.0]], [[0.0, 2.0, 1.0]])  # the text has token 0
    assert (found.same_top1, found.flips) == (0, 0)


def test_the_interval_of_the_ratio_is_that_of_the_paired_difference() -> None:
    reference, other, targets = some_logits(200)
    found = compared(reference, other, targets)
    nll = [
        [-logarithms(row)[target] for row, target in zip(logits.tolist(), targets.tolist(), strict=True)]
        for logits in (reference, other)
    ]
    difference = batched_mean(torch.tensor(nll[1], dtype=torch.float64) - torch.tensor(nll[0], dtype=torch.float64))
    assert difference is not None
    low, high = difference.interval.exp().tolist()
    assert (found.ppl_ratio_low, found.ppl_ratio_high) == (pytest.approx(low), pytest.approx(high))
    assert low < found.ppl_ratio < high


def test_who_is_better_is_said_outside_of_the_noise_only() -> None:
    reference, other, targets = some_logits(200)
    sure = reference.clone()
    sure[torch.arange(200), targets] += 1
    assert compared(reference, sure, targets).better == "other"
    assert compared(sure, reference, targets).better == "reference"
    assert compared(reference, reference, targets).better is None
    for step in (1e-3, -1e-3):  # of which one is ever so little better
        assert compared(reference, reference + step * (other - reference), targets).better is None
    few = compared(reference[:19], sure[:19], targets[:19])
    assert (few.better, few.ppl_ratio_low, few.ppl_ratio_high) == (None, None, None)


def test_places_put_positions_back_into_the_order_of_the_text() -> None:
    reference, other, targets = some_logits(100)
    shuffled = torch.randperm(100, generator=torch.Generator().manual_seed(1))
    whole = dataclasses.astuple(compared(reference, other, targets))
    comparison = Comparison()
    for part in shuffled.split(30):
        comparison.add(reference[part], other[part], targets[part], part)
    assert comparison.n_positions == 100 and comparison.kld_mean == pytest.approx(whole[1])
    assert dataclasses.astuple(comparison.result()) == pytest.approx(whole, rel=1e-12)


def test_a_text_that_one_model_rules_out_has_no_interval() -> None:
    reference, other, targets = some_logits(100)
    other[5, targets[5]] = -INF
    found = compared(reference, other, targets)
    assert (found.ppl_ratio, found.ppl_ratio_low, found.better) == (INF, None, None)
