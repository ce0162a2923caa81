"""Every quantizer works with schemes that are not affine, and finds the least error, as brute force shows."""

import pytest
import torch
from torch import Tensor

from codebook_schemes import FP4_SCHEME, NF4_SCHEME, CodebookFitter, CodebookParams, CodebookScheme
from gptfast_cli.core.quantize.quantizers import Compensation, in_groups
from gptfast_cli.core.quantize.quantizers.gptq import PLUG as GPTQ
from gptfast_cli.core.quantize.quantizers.nearest import PLUG as NEAREST
from gptfast_cli.core.quantize.quantizers.nearest import Nearest
from gptfast_cli.core.quantize.quantizers.search import PLUG as SEARCH
from gptfast_cli.core.quantize.quantizers.search import magnitude_importance
from gptfast_cli.core.schemes import QuantizedScheme, Weight
from gptq_oracle import DAMPING, brute_force, inputs_of, output_error

SCHEMES = [pytest.param(scheme, id=scheme.name) for scheme in (NF4_SCHEME, FP4_SCHEME)]


def values_of(scheme: CodebookScheme, params: CodebookParams) -> Tensor:
    """Every value that each group can hold, [out, n_groups, n_codes] float64."""
    scales = params.scales.double() * params.outer.double()
    return scales.unsqueeze(-1) * torch.tensor(scheme.table, dtype=torch.float64)


def least_errors(scheme: CodebookScheme, params: CodebookParams, groups: Tensor, importance: Tensor) -> Tensor:
    """The least weighted squared error of each group over all codes of every element, [out, n_groups]."""
    distances = groups.double().unsqueeze(-1) - values_of(scheme, params).unsqueeze(-2)
    return (distances.square().amin(-1) * importance).sum(-1)


def errors_of(scheme: CodebookScheme, weight: Weight, matrix: Tensor, importance: Tensor) -> Tensor:
    """The weighted squared error of each group of a quantized matrix."""
    difference = in_groups(scheme.dense(weight, torch.float32) - matrix, scheme.group_sizes[0])
    return (difference.double().square() * importance).sum(-1)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_codebook_scheme_meets_the_protocol(scheme: CodebookScheme) -> None:
    assert isinstance(scheme, QuantizedScheme)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_nearest_gives_every_element_the_nearest_value_of_its_group(scheme: CodebookScheme) -> None:
    matrix = torch.randn(20, 90)
    groups = in_groups(matrix, scheme.group_sizes[0])
    params = scheme.fitter(matrix).fit(groups)
    weight = NEAREST.quantize(matrix, scheme, scheme.group_sizes[0])
    assert scheme.is_whole(weight)
    ones = torch.ones_like(groups)
    found, least = errors_of(scheme, weight, matrix, ones), least_errors(scheme, params, groups, ones)
    torch.testing.assert_close(found, least, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_search_gives_every_group_the_candidate_of_least_error(scheme: CodebookScheme) -> None:
    matrix = torch.randn(20, 96) ** 3
    groups = in_groups(matrix, scheme.group_sizes[0])
    importance = magnitude_importance(groups)
    fitter = scheme.fitter(matrix)
    every = [fitter.fit(groups), *fitter.candidates(groups, importance)]
    errors = torch.stack([least_errors(scheme, params, groups, importance) for params in every])
    found = errors_of(scheme, SEARCH.quantize(matrix, scheme, scheme.group_sizes[0]), matrix, importance)
    torch.testing.assert_close(found, errors.amin(0), rtol=1e-5, atol=1e-9)
    assert len(errors.argmin(0).unique()) > 2  # groups differ in which candidate is best


@pytest.mark.parametrize("scheme", SCHEMES)
def test_search_is_within_a_few_percent_of_every_scale(scheme: CodebookScheme) -> None:
    matrix = torch.randn(64, 96)
    groups = in_groups(matrix, scheme.group_sizes[0])
    importance = magnitude_importance(groups)
    fitter = scheme.fitter(matrix)
    assert isinstance(fitter, CodebookFitter)
    tried = [
        least_errors(scheme, fitter.fit(groups * stretch), groups, importance)
        for stretch in torch.linspace(0.5, 1.3, 200)
    ]
    found = errors_of(scheme, SEARCH.quantize(matrix, scheme, scheme.group_sizes[0]), matrix, importance)
    assert float(found.sum()) < 1.08 * float(torch.stack(tried).amin(0).sum())


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("scheme", SCHEMES)
def test_gptq_gives_the_numbers_of_a_float64_version_of_the_papers_equations(scheme: CodebookScheme, seed: int) -> None:
    matrix = torch.randn(6, 150, generator=torch.Generator().manual_seed(seed))
    inputs, group_size = inputs_of(150, seed=seed), scheme.group_sizes[0]
    weight = GPTQ.calibrated(inputs, Compensation(DAMPING, block_size=50)).quantize(matrix, scheme, group_size)
    assert bool((weight.parts["codes"].flatten(1)[:, 150:] == scheme.table.index(0)).all())
    found, expected = scheme.dense(weight, torch.float32), brute_force(matrix, inputs, scheme, group_size)
    assert float(torch.isclose(found, expected.float(), rtol=1e-6, atol=0).float().mean()) > 0.99
    searched = scheme.dense(SEARCH.quantize(matrix, scheme, group_size), torch.float32)
    assert output_error(matrix, found, inputs) == pytest.approx(output_error(matrix, expected, inputs), rel=0.01)
    assert output_error(matrix, found, inputs) < 0.7 * output_error(matrix, searched, inputs)


def test_a_scale_of_the_whole_matrix_is_the_same_in_every_block_of_rows() -> None:
    matrix = torch.randn(12, 64) * torch.arange(1, 13).unsqueeze(1)
    whole = NEAREST.quantize(matrix, FP4_SCHEME, 16)
    blocks = Nearest(block_elements=128).quantize(matrix, FP4_SCHEME, 16)
    assert len(whole.parts["outer"].unique()) == 1
    assert all(torch.equal(blocks.parts[name].float(), whole.parts[name].float()) for name in whole.parts)
