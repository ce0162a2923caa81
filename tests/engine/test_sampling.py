"""Probabilities are those of transformers' own processors, and the edges of every option hold."""

import itertools

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from gptfast_cli.core.engine.sampling import Sampling, check, penalize, probabilities
from gptfast_cli.core.errors import UsageError

TINY = float(torch.finfo(torch.float32).tiny)
LIMITS = [
    *(Sampling(temperature, top_k) for temperature in (TINY, 1e-30, 3.4e38) for top_k in (0, 5, 2**31 - 1)),
    *(Sampling(1.0, top_k, top_p) for top_p in (TINY, 1e-7) for top_k in (0, 5)),
    *(Sampling(1.0, top_k, 1.0, min_p) for min_p in (5e-324, 1e-300, 1.0) for top_k in (0, 5)),
    *(Sampling(1.0, 0, repetition_penalty=penalty) for penalty in (1e-6, 1e6)),
]
"""The smallest and largest values that `check` lets through."""


def oracle(logits: torch.Tensor, history: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    processors = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty)])
    processors.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k:
        processors.append(TopKLogitsWarper(sampling.top_k))
    processors.append(TopPLogitsWarper(sampling.top_p))
    processors.append(MinPLogitsWarper(sampling.min_p))
    return processors(history, logits.clone()).softmax(dim=-1)


@pytest.mark.parametrize(
    "sampling",
    [Sampling(*options) for options in itertools.product((0.3, 1.7), (0, 5, 1000), (0.4, 1.0), (0.0, 0.2), (0.8, 1.3))],
    ids=str,
)
def test_probabilities_equal_those_of_transformers(sampling: Sampling) -> None:
    generator = torch.Generator().manual_seed(3)
    logits = 4 * torch.randn(6, 97, generator=generator)
    history = torch.randint(97, (6, 11), generator=generator)
    p = probabilities(penalize(logits, history, sampling.repetition_penalty), sampling)
    torch.testing.assert_close(p, oracle(logits, history, sampling), rtol=0, atol=1e-6)


def test_the_smallest_temperature_is_as_good_as_greedy() -> None:
    p = probabilities(torch.tensor([[1.0, 3.0, 2.9]]), Sampling(temperature=1e-38))
    assert p.tolist() == [[0.0, 1.0, 0.0]]


def test_probabilities_are_float32_whatever_the_logits_are() -> None:
    logits = torch.randn(2, 50, dtype=torch.bfloat16)
    p = probabilities(logits, Sampling(temperature=1.0, top_k=0))
    assert p.dtype is torch.float32
    torch.testing.assert_close(p, logits.double().softmax(-1).float())


@pytest.mark.parametrize("sampling", LIMITS, ids=str)
def test_at_the_limits_of_options_probabilities_are_those_in_float64(sampling: Sampling) -> None:
    check(sampling)
    logits = 8 * torch.randn(3, 97, generator=torch.Generator().manual_seed(3))
    seen = torch.arange(0, 97, 3).expand(3, -1)
    p = probabilities(penalize(logits, seen, sampling.repetition_penalty), sampling)
    expected = probabilities(penalize(logits.double(), seen, sampling.repetition_penalty), sampling)
    assert p.isfinite().all()
    torch.testing.assert_close(p.double(), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("temperature", 1e-60),
        ("temperature", 1e39),
        ("top_k", -1),
        ("top_k", 2**32 + 1),
        ("top_p", 0.0),
        ("top_p", 5e-324),
        ("top_p", float("nan")),
        ("top_p", 1.1),
        ("min_p", -0.1),
        ("min_p", 1.1),
        ("min_p", float("nan")),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", 1e-300),
        ("repetition_penalty", 1e300),
        ("repetition_penalty", float("nan")),
    ],
)
def test_a_value_out_of_range_is_refused_by_the_name_of_its_option(field: str, value: float) -> None:
    with pytest.raises(UsageError, match=f"--{field.replace('_', '-')} must be"):
        check(Sampling(**{field: value}))
