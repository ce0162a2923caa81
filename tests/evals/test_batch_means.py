"""The interval of a mean holds what it should as often as it says, also where neighbours are alike."""

import math

import pytest
import torch
from torch import Tensor

from gptfast_cli.core.evals.divergence import N_BATCHES, batched_mean


def noise(n_texts: int, n: int, *, alike: float, seed: int = 0) -> Tensor:
    """Texts [n_texts, n] of mean 0 in which a value is `alike` times the one before it, and something new."""
    generator = torch.Generator().manual_seed(seed)
    fresh = torch.randn(n_texts, n, generator=generator, dtype=torch.float64)
    values = fresh.clone()
    for at in range(1, n):
        values[:, at] = alike * values[:, at - 1] + math.sqrt(1 - alike**2) * fresh[:, at]
    return values


@pytest.mark.parametrize("alike", [0.0, 0.5, 0.8])
def test_95_of_100_intervals_hold_the_mean(alike: float) -> None:
    texts = noise(2000, 2000, alike=alike)
    found = [batched_mean(text) for text in texts]
    held = [each is not None and bool(each.interval[0] <= 0 <= each.interval[1]) for each in found]
    assert sum(held) / len(held) == pytest.approx(0.95, abs=0.015)  # three times its own standard error


def test_a_token_as_a_witness_of_its_own_is_too_sure() -> None:
    """What the batches are for: such intervals hold the mean of alike neighbours about half of the time."""
    texts = noise(2000, 2000, alike=0.8)
    held = texts.mean(dim=1).abs() <= 1.96 * texts.std(dim=1) / math.sqrt(texts.shape[1])
    assert held.double().mean() < 0.6


def test_batches_of_one_value_are_the_usual_standard_error() -> None:
    values = noise(1, N_BATCHES, alike=0.0)[0]
    found = batched_mean(values)
    assert found is not None
    assert found.value == pytest.approx(values.mean().item())
    assert found.stderr == pytest.approx(values.std().item() / math.sqrt(N_BATCHES), rel=1e-12)


def test_equal_batches_are_the_standard_error_of_their_means() -> None:
    values = noise(1, 7 * N_BATCHES, alike=0.5)[0]
    found = batched_mean(values)
    assert found is not None
    assert found.stderr == pytest.approx(values.view(N_BATCHES, 7).mean(dim=1).std().item() / math.sqrt(N_BATCHES))


def test_values_that_are_all_one_are_certain() -> None:
    found = batched_mean(torch.full((100,), 0.25, dtype=torch.float64))
    assert found is not None and (found.value, found.stderr) == (0.25, 0)


@pytest.mark.parametrize("values", [[0.5] * (N_BATCHES - 1), [0.5] * 100 + [math.inf], [math.nan] + [0.5] * 100])
def test_too_few_values_and_infinite_ones_have_no_interval(values: list[float]) -> None:
    assert batched_mean(torch.tensor(values, dtype=torch.float64)) is None
