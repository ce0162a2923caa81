"""Draws follow the probabilities, and depend on seed, stream and position alone."""

import pytest
import torch

from gptfast_cli.core.engine.sampling import (
    Sampler,
    Sampling,
    SamplingContext,
    SeenTokens,
    draw_tokens,
    probabilities,
    sample_inverse_cdf,
    uniform,
)
from gptfast_cli.core.models.decoder import Logits

PLAIN = Sampling(temperature=1.0, top_k=0)


def draw(stream: int = 0, position: int = 0, *, sampling: Sampling = PLAIN, seed: int = 0) -> SamplingContext:
    return SamplingContext(Sampler(sampling, seed, stream), (), [0] * position)


def chi_square(counts: torch.Tensor, p: torch.Tensor) -> float:
    expected = counts.sum() * p
    return float(((counts - expected) ** 2 / expected).sum())


def test_draws_follow_the_probabilities() -> None:
    p = torch.tensor([0.5, 0.2, 0.15, 0.1, 0.04, 0.01], dtype=torch.float64)
    draws = [draw(stream, seed=5) for stream in range(40_000)]
    tokens = draw_tokens(Logits(p.log().float().expand(len(draws), -1)), draws)
    counts = torch.bincount(torch.tensor(tokens), minlength=6).double()
    assert chi_square(counts, p) < 25.7  # 5 degrees of freedom: exceeded once in 10,000


@pytest.mark.parametrize("varied", ["seed", "sequence", "position"])
def test_uniform_numbers_are_uniform_along_each_part_of_their_key(varied: str) -> None:
    fixed = {"seed": 1, "sequence": 2, "position": 3}
    draws = torch.tensor([uniform(**{**fixed, varied: value}) for value in range(50_000)], dtype=torch.float64)
    counts = torch.histc(draws, bins=20, min=0, max=1)
    assert chi_square(counts, torch.full((20,), 0.05)) < 52.4  # 19 degrees of freedom: once in 10,000
    neighbours = torch.corrcoef(torch.stack([draws[:-1], draws[1:]]))[0, 1]
    assert abs(neighbours) < 4 / 50_000**0.5


def test_a_token_of_probability_zero_is_never_drawn() -> None:
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]])
    draws = [draw(stream) for stream in range(5000)]
    assert set(draw_tokens(Logits(logits.expand(len(draws), -1)), draws)) == {1, 3}


def test_the_smallest_uniform_number_skips_tokens_of_probability_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gptfast_cli.core.engine.sampling.uniform", lambda *_: 0.0)
    assert draw_tokens(Logits(torch.tensor([[-torch.inf, -torch.inf, 0.0, 0.0]])), [draw()]) == [2]


def test_draws_do_not_depend_on_the_batch_or_its_order_or_the_samplers_beside_them() -> None:
    logits = Logits(torch.randn(6, 300, generator=torch.Generator().manual_seed(0)))
    kinds = (Sampling(top_k=50, top_p=0.9), Sampling(temperature=0), Sampling(top_k=0, repetition_penalty=1.4))
    draws = [draw(row, position=row * 7, sampling=kinds[row % 3], seed=row % 2) for row in range(6)]
    batched = draw_tokens(logits, draws)
    order = [4, 0, 5, 2, 1, 3]
    assert draw_tokens(logits.rows(order), [draws[row] for row in order]) == [batched[row] for row in order]
    assert [draw_tokens(logits.rows([row]), [draws[row]])[0] for row in range(6)] == batched


@pytest.mark.parametrize("varied", ["seed", "stream", "position"])
def test_another_seed_stream_or_position_draws_other_tokens(varied: str) -> None:
    fixed = {"seed": 0, "stream": 0, "position": 0}
    draws = [draw(**{**fixed, varied: value}) for value in range(50)]
    assert len(set(draw_tokens(Logits(torch.zeros(50, 1000)), draws))) > 40


def test_temperature_zero_takes_the_lowest_of_equal_tokens() -> None:
    logits = torch.tensor([[0.0, 7.0, 3.0, 7.0, 7.0]]).repeat(1, 40)
    assert draw_tokens(Logits(logits), [draw(sampling=Sampling(temperature=0))]) == [1]


def test_the_repetition_penalty_counts_the_prompt_and_the_generated_tokens() -> None:
    sampler = Sampler(Sampling(temperature=0, repetition_penalty=2.0), seed=0)
    logits = torch.tensor([[5.0, 4.0, 3.0, -1.0]])
    assert draw_tokens(Logits(logits), [SamplingContext(sampler, (0,), [1])]) == [2]


def test_the_tokens_seen_of_a_text_that_grows_are_those_of_the_whole_text() -> None:
    seen, generated = SeenTokens(), [7, 3]
    assert list(seen.of((3, 5, 3), generated)) == [3, 5, 7]
    generated += [5, 9, 9]
    assert list(seen.of((3, 5, 3), generated)) == [3, 5, 7, 9]
    assert list(seen.of((3, 5, 3), generated)) == list(SeenTokens().of((3, 5, 3), generated))


@pytest.mark.parametrize("sampling", [PLAIN, Sampling(temperature=0)], ids=["drawn", "greedy"])
def test_output_that_is_not_a_number_is_no_token(sampling: Sampling) -> None:
    assert draw_tokens(Logits(torch.tensor([[0.0, torch.nan]])), [draw(sampling=sampling)]) == [2]


@pytest.mark.parametrize("step", [0.0, 0.5], ids=["no ties", "ties"])
@pytest.mark.parametrize("sampling", [Sampling(0.8, 7), Sampling(1.0, 20, 0.9, 0.05), Sampling(2.0, 1)], ids=str)
def test_tokens_of_the_top_k_are_those_drawn_from_all(sampling: Sampling, step: float) -> None:
    logits = 3 * torch.randn(200, 101, generator=torch.Generator().manual_seed(5))
    if step:
        logits = (logits / step).round() * step  # several are as large as the k-th
    draws = [draw(row, seed=9, sampling=sampling) for row in range(len(logits))]
    uniforms = torch.tensor([each.uniform() for each in draws], dtype=torch.float64)
    expected = sample_inverse_cdf(probabilities(logits, sampling), uniforms).tolist()
    assert draw_tokens(Logits(logits), draws) == expected


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_logit_that_is_no_number_gives_no_token_from_the_top_k(value: float) -> None:
    logits = torch.randn(1, 101)
    logits[0, 50] = value
    assert draw_tokens(Logits(logits), [draw(sampling=Sampling(1.0, 5, repetition_penalty=1.2))]) == [101]
