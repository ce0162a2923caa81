"""Rounding by search: beside a search through everything, never worse than the range, and at the edges of numbers."""

import pytest
import torch
from torch import Tensor

from gptfast_cli.core.errors import CorruptError
from gptfast_cli.core.quantize.quantizers import in_groups, quantizers
from gptfast_cli.core.quantize.quantizers.search import PLUG as SEARCH
from gptfast_cli.core.quantize.quantizers.search import Search, magnitude_importance, search_params, weighted_error
from gptfast_cli.core.schemes import AffineParams, Weight, quantized
from quantized_cases import CASES

N_SCALES = 200


def dense(weight: Weight) -> Tensor:
    return quantized(weight.scheme).dense(weight, torch.float32)


def range_params(groups: Tensor, name: str) -> AffineParams:
    params = quantized(name).fitter(groups.flatten(1)).fit(groups)
    assert isinstance(params, AffineParams)
    return params


def searched(groups: Tensor, importance: Tensor, name: str) -> AffineParams:
    params = search_params(groups, importance, quantized(name).fitter(groups.flatten(1)))
    assert isinstance(params, AffineParams)
    return params


def exhaustive_error(groups: Tensor, importance: Tensor, name: str) -> Tensor:
    """The least error of each group over every zero point and N_SCALES scales, in float64."""
    usual = range_params(groups, name)
    zeros = range(16) if name == "int4" else [0]
    least = torch.full(usual.scales.shape, torch.inf, dtype=torch.float64)
    codes = torch.arange(usual.lowest, usual.highest + 1).double()
    for share in torch.linspace(0.5, 1.2, N_SCALES):
        scales = (usual.scales.float() * share).to(usual.scales.dtype).double()
        for zero in zeros:
            steps = (groups.double() / scales.unsqueeze(-1) + zero).round().clamp(codes[0], codes[-1])
            errors = (groups.double() - (steps - zero) * scales.unsqueeze(-1)).square() * importance
            least = torch.minimum(least, errors.sum(-1))
    return least


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("name", "group_size", "rows"), [("int4", 32, 64), ("int4", 128, 32), ("int8", None, 8)])
def test_the_error_is_within_a_few_percent_of_what_a_search_through_everything_finds(
    name: str, group_size: int | None, rows: int, weighted: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    groups = in_groups(torch.randn(rows, 256, generator=generator), group_size)
    importance = torch.rand(groups.shape, generator=generator) if weighted else torch.ones_like(groups)
    params = searched(groups, importance, name)
    found = weighted_error(groups, params, importance).double().sum()
    best = exhaustive_error(groups, importance, name).sum()
    usual = weighted_error(groups, range_params(groups, name), importance).double().sum()
    assert float(found) <= (1.04 if name == "int4" else 1.08) * float(best)  # int8: it hardly matters where it is
    assert float(found) <= float(usual)


@pytest.mark.parametrize(("name", "group_size"), CASES)
def test_no_group_is_worse_off_than_on_the_grid_of_its_range(name: str, group_size: int | None) -> None:
    groups = in_groups(torch.randn(50, 300) ** 3, group_size)
    importance = magnitude_importance(groups)
    usual = range_params(groups, name)
    params = searched(groups, importance, name)
    errors, usual_errors = (weighted_error(groups, each, importance) for each in (params, usual))
    assert bool((errors <= usual_errors).all())
    kept = (params.scales == usual.scales) & (params.zeros == usual.zeros)
    assert bool((errors < usual_errors)[~kept].all())


def test_what_matters_most_is_met_best() -> None:
    groups = torch.randn(100, 1, 32)
    importance = torch.ones(32)
    importance[5] = 1e4
    params = searched(groups, importance, "int4")
    errors = (params.decode(params.encode(groups)) - groups).abs().mean(dim=(0, 1))
    assert float(errors[5]) < 0.3 * float(errors.mean())


@pytest.mark.parametrize(("name", "group_size"), CASES)
@pytest.mark.parametrize("largest", [0.0, 1e-45, 1e-38, 1e-20, 1e20, 1e38, torch.finfo(torch.float32).max])
def test_the_smallest_and_largest_numbers_stay_finite(name: str, group_size: int | None, largest: float) -> None:
    matrix = torch.linspace(-1, 0.4, 256).repeat(2, 1) * largest
    assert bool(dense(SEARCH.quantize(matrix, quantized(name), group_size)).isfinite().all())


@pytest.mark.parametrize(("name", "group_size"), CASES)
def test_block_by_block_and_padded_gives_what_the_whole_gives(name: str, group_size: int | None) -> None:
    matrix = torch.randn(11, 100)
    whole = SEARCH.quantize(matrix, quantized(name), group_size)
    blocks = Search(block_elements=250).quantize(matrix, quantized(name), group_size)
    assert all(torch.equal(blocks.parts[part], whole.parts[part]) for part in whole.parts)


@pytest.mark.parametrize("name", list(quantizers))
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_every_rounding_refuses_nan_and_infinity(name: str, value: float) -> None:
    matrix = torch.randn(4, 100)
    matrix[2, 77] = value
    with pytest.raises(CorruptError, match="NaN or infinite"):
        quantizers[name].quantize(matrix, quantized("int4"), 32)


@pytest.mark.parametrize("name", list(quantizers))
@pytest.mark.parametrize(("scheme", "group_size"), CASES)
def test_every_rounding_goes_with_every_scheme(name: str, scheme: str, group_size: int | None) -> None:
    matrix = torch.randn(7, 90)
    weight = quantizers[name].quantize(matrix, quantized(scheme), group_size)
    assert quantized(scheme).is_whole(weight)
    assert float((dense(weight) - matrix).norm() / matrix.norm()) < (0.02 if scheme == "int8" else 0.2)


def test_the_params_found_are_some_that_the_scheme_can_store() -> None:
    params = searched(torch.randn(20, 3, 32), torch.ones(()), "int4")
    assert params.scales.dtype == torch.bfloat16
    assert bool(((params.zeros >= 0) & (params.zeros <= 15)).all())
