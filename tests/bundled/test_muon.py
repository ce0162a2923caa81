"""Muon moves a matrix along the orthogonal part of its gradient, whatever the gradient's size."""

import pytest
import torch

from recipe.muon import Muon, orthogonalized


@pytest.mark.parametrize("shape", [(24, 24), (16, 60), (60, 16)])
def test_singular_values_come_near_one_and_directions_stay(shape: tuple[int, int]) -> None:
    gradient = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, _, v = torch.linalg.svd(gradient, full_matrices=False)
    inside = u.mT @ orthogonalized(gradient) @ v.mT
    assert inside.diagonal().min() > 0.3
    assert inside.diagonal().max() < 1.3
    torch.testing.assert_close(inside, inside.diagonal().diag(), rtol=0, atol=1e-4)


def test_a_step_goes_downhill_and_clears_the_gradient() -> None:
    weight = torch.nn.Parameter(torch.randn(8, 12, generator=torch.Generator().manual_seed(1)))
    learner = Muon([weight])
    losses = []
    for _ in range(150):
        loss = (weight - 1).square().sum()
        loss.backward()
        learner.step(rate=0.2)
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]
    assert weight.grad is None
