"""The CPU engine chooses the tokens that the sampler would: those that the uniform number falls on."""

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from cpu_engine import library
from gptfast_cli.core.engine.runner import sampling_params
from gptfast_cli.core.engine.sampling import Sampler, Sampling, SamplingContext, penalize, probabilities

engine = functools.cache(library)

TINY = float(torch.finfo(torch.float32).tiny)
LIMITS = [
    *(Sampling(temperature, top_k) for temperature in (TINY, 1e-30, 3.4e38) for top_k in (0, 5, 2**31 - 1)),
    *(Sampling(1.0, top_k, top_p) for top_p in (TINY, 1e-7) for top_k in (0, 5)),
    *(Sampling(1.0, top_k, 1.0, min_p) for min_p in (5e-324, 1e-300, 1.0) for top_k in (0, 5)),
]
UNIFORMS = [0.0, 1e-9, 0.01, 0.2, 0.37, 0.5, 0.77, 0.9, 0.999, 1 - 2**-32]


def chosen(logits: Tensor, sampling: Sampling, uniform: float = 0.0, text: Sequence[int] = ()) -> int:
    draw = SamplingContext(Sampler(sampling, 0), text, ())
    return engine().gptfast_sample(logits.data_ptr(), len(logits), sampling_params(draw), uniform)


@pytest.mark.parametrize("vocab_size", [3, 97, 4096, 32_001])
@pytest.mark.parametrize(
    "sampling",
    [Sampling(*options) for options in itertools.product((0.3, 1.7), (0, 1, 5, 1000), (0.4, 0.95, 1.0), (0.0, 0.2))],
    ids=str,
)
def test_a_draw_falls_on_the_step_of_the_distribution_function_where_its_number_lies(
    sampling: Sampling, vocab_size: int
) -> None:
    logits = 4 * torch.randn(vocab_size, generator=torch.Generator().manual_seed(vocab_size))
    p = probabilities(logits.unsqueeze(0), sampling)[0].double()
    ends = p.cumsum(0) / p.sum()
    for uniform in UNIFORMS:
        token = chosen(logits, sampling, uniform)
        assert p[token] > 0
        assert ends[token] - p[token] - 1e-6 <= uniform <= ends[token] + 1e-6


@pytest.mark.parametrize("penalty", [0.7, 1.1, 1e6])
@pytest.mark.parametrize(
    "sampling", [Sampling(0.0), Sampling(0.7, 0), Sampling(1.0, 20), Sampling(1.0, 0, 0.6, 0.01)], ids=str
)
def test_a_repetition_penalty_is_on_tokens_seen_and_goes_again(sampling: Sampling, penalty: float) -> None:
    generator = torch.Generator().manual_seed(3)
    logits = 4 * torch.randn(4096, generator=generator)
    text = torch.randint(4096, (3000,), generator=generator).tolist()  # some of them several times
    text += logits.topk(3).indices.tolist()
    before, penalized = logits.clone(), penalize(logits.unsqueeze(0), [torch.tensor(text)], penalty)[0]
    with_penalty = replace(sampling, repetition_penalty=penalty)
    for uniform in UNIFORMS:
        assert chosen(logits, with_penalty, uniform, text) == chosen(penalized, sampling, uniform)
        assert logits.equal(before)


@pytest.mark.parametrize("sampling", [Sampling(1.0, 0), Sampling(0.7, 20), Sampling(1.0, 0, 0.6)], ids=str)
def test_draws_follow_the_probabilities(sampling: Sampling) -> None:
    logits = 2 * torch.randn(60, generator=torch.Generator().manual_seed(1))
    p = probabilities(logits.unsqueeze(0), sampling)[0].double()
    n = 20_000
    tokens = torch.tensor([chosen(logits, sampling, (i + 0.5) / n) for i in range(n)])
    # evenly spaced numbers: the counts are those of the law, but for one at each end of a token's step
    assert (torch.bincount(tokens, minlength=60) - n * p).abs().max() <= 1.01


@pytest.mark.parametrize("sampling", LIMITS, ids=str)
def test_at_the_limits_of_options_a_draw_is_that_of_float64(sampling: Sampling) -> None:
    logits = 8 * torch.randn(4096, generator=torch.Generator().manual_seed(2))
    p = probabilities(logits.double().unsqueeze(0), sampling)[0]
    ends = p.cumsum(0) / p.sum()
    for uniform in UNIFORMS:
        token = chosen(logits, sampling, uniform)
        assert p[token] > 0
        assert ends[token] - p[token] - 1e-5 <= uniform <= ends[token] + 1e-5


def test_the_most_probable_token_stays_however_small_top_p_is() -> None:
    """In the engine's threads 5e-324 counts as 0."""
    logits = torch.randn(4096, generator=torch.Generator().manual_seed(2))
    best = int(logits.argmax())
    for top_k in (0, 5):
        assert {chosen(logits, Sampling(1.0, top_k, 0.0), uniform) for uniform in UNIFORMS} == {best}


def test_the_most_probable_token_is_the_first_of_several() -> None:
    logits = torch.zeros(100)
    assert chosen(logits, Sampling(temperature=0)) == 0
    logits[[40, 70]] = 3.0
    assert chosen(logits, Sampling(temperature=0)) == 40
    for top_k in (0, 5):
        assert {chosen(logits, Sampling(1e-38, top_k), uniform) for uniform in UNIFORMS} == {40, 70}


def test_tokens_that_equal_the_last_of_the_top_k_stay() -> None:
    logits = torch.tensor([1.0, 2.0, 1.0, 0.0, 1.0])
    assert {chosen(logits, Sampling(1.0, 2), uniform) for uniform in UNIFORMS} == {0, 1, 2, 4}


@pytest.mark.parametrize("vocab_size", [1000, 40_000])
@pytest.mark.parametrize("top_k", [0, 900])
def test_of_equal_tokens_at_the_border_of_top_p_the_later_ones_stay(vocab_size: int, top_k: int) -> None:
    logits, sampling = torch.full((vocab_size,), -1.0), Sampling(1.0, top_k, 0.25)
    logits[:10] = 1.0
    kept = probabilities(logits.double().unsqueeze(0), sampling)[0].nonzero().flatten()
    assert 10 < len(kept) < vocab_size / 2
    assert chosen(logits, sampling, 0.0) == 0
    assert chosen(logits, sampling, 10 * math.e**2 / (len(kept) - 10 + 10 * math.e**2) + 1e-6) == kept[10]
    assert chosen(logits, sampling, 1 - 2**-32) == vocab_size - 1


@pytest.mark.parametrize("sampling", [Sampling(1.0, 0), Sampling(1.0, 3), Sampling(1.0, 0, 0.9)], ids=str)
def test_a_token_that_is_ruled_out_is_never_chosen(sampling: Sampling) -> None:
    logits = torch.full((70,), -torch.inf)
    logits[[33, 69]] = torch.tensor([0.5, 0.0])
    assert {chosen(logits, sampling, uniform) for uniform in UNIFORMS} == {33, 69}


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
@pytest.mark.parametrize("at", [0, 31, 64, 69])
@pytest.mark.parametrize("sampling", [Sampling(0), Sampling(1.0, 0), Sampling(1.0, 5)], ids=str)
def test_what_is_no_number_is_no_token(sampling: Sampling, at: int, wrong: float) -> None:
    logits = torch.zeros(70)
    logits[at] = wrong
    assert chosen(logits, sampling, 0.5) == 70
    assert chosen(torch.full((70,), -torch.inf), sampling, 0.5) == 70
