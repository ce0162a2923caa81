"""Rounding to nearest against brute force, on hard inputs, and within the error bounds of llama.cpp's own test."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gptfast_cli.core.errors import CorruptError
from gptfast_cli.core.quantize.quantizers import in_groups
from gptfast_cli.core.quantize.quantizers.nearest import PLUG as NEAREST
from gptfast_cli.core.quantize.quantizers.nearest import Nearest
from gptfast_cli.core.schemes import AffineParams, Weight, quantized
from quantized_cases import CASES

MAX = torch.finfo(torch.float32).max


def dense(name: str, weight: Weight) -> Tensor:
    return quantized(name).dense(weight, torch.float32)


def round_trip(name: str, group_size: int | None, matrix: Tensor) -> Tensor:
    return dense(name, NEAREST.quantize(matrix, quantized(name), group_size))


def fitted(name: str, group_size: int | None, matrix: Tensor) -> tuple[Tensor, AffineParams]:
    groups = in_groups(matrix, group_size)
    params = quantized(name).fitter(matrix).fit(groups)
    assert isinstance(params, AffineParams)
    return groups, params


@st.composite
def matrices(draw: st.DrawFn) -> Tensor:
    """Weights of many sizes and sorts: normal, coarse (so that ties are common), one-sided, sparse, with outliers."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    rows, columns = draw(st.integers(1, 4)), draw(st.sampled_from([1, 31, 32, 33, 100, 256, 300]))
    matrix = torch.randn(rows, columns, generator=generator) * 10.0 ** draw(st.integers(-30, 30))
    sort = draw(st.sampled_from(["normal", "coarse", "one-sided", "sparse", "outlier", "bfloat16"]))
    match sort:
        case "coarse":
            return torch.randint(-9, 10, (rows, columns), generator=generator) / 2
        case "one-sided":
            return matrix.abs() + matrix.abs().amax()
        case "sparse":
            return matrix * (torch.rand(rows, columns, generator=generator) < 0.1)
        case "outlier":
            matrix[0, 0] *= 1000
            return matrix
        case "bfloat16":
            return matrix.bfloat16()
    return matrix


@pytest.mark.parametrize(("name", "group_size"), CASES)
@settings(max_examples=40)
@given(matrix=matrices())
def test_no_other_code_on_the_grid_is_nearer(name: str, group_size: int | None, matrix: Tensor) -> None:
    groups, params = fitted(name, group_size, matrix)
    codes = torch.arange(params.lowest, params.highest + 1).double()
    # values has the shape [out, n_groups, codes]
    values = (codes - params.zeros.double().unsqueeze(-1)) * params.scales.double().unsqueeze(-1)
    best = (groups.double().unsqueeze(-1) - values.unsqueeze(-2)).abs().amin(-1).flatten(1)[:, : matrix.shape[1]]
    found = (matrix.double() - round_trip(name, group_size, matrix).double()).abs()
    step = params.scales.double().repeat_interleave(groups.shape[-1], dim=-1)[:, : matrix.shape[1]]
    assert bool((found <= best + 1e-5 * step).all())


@pytest.mark.parametrize(
    ("name", "group_size", "steps"), [(*case, 0.5 if case[0] == "int8" else 0.62) for case in CASES]
)
@settings(max_examples=40)
@given(matrix=matrices())
def test_no_element_is_further_off_than_half_a_step_and_what_rounding_the_step_costs(
    name: str, group_size: int | None, steps: float, matrix: Tensor
) -> None:
    groups, params = fitted(name, group_size, matrix)
    errors = (groups.double() - params.decode(params.encode(groups)).double()).abs()
    assert bool((errors <= (steps + 1e-5) * params.scales.double().unsqueeze(-1)).all())


@pytest.mark.parametrize(("name", "group_size"), CASES)
@settings(max_examples=40)
@given(matrix=matrices())
def test_quantizing_what_was_quantized_changes_nothing(name: str, group_size: int | None, matrix: Tensor) -> None:
    first = NEAREST.quantize(matrix, quantized(name), group_size)
    second = NEAREST.quantize(dense(name, first), quantized(name), group_size)
    assert torch.equal(second.parts["codes"], first.parts["codes"])
    assert torch.equal(dense(name, second), dense(name, first))


@pytest.mark.parametrize(("name", "group_size"), CASES)
def test_every_group_uses_its_grid_from_end_to_end(name: str, group_size: int | None) -> None:
    groups, params = fitted(name, group_size, torch.randn(200, 512))
    codes = params.encode(groups)
    if name == "int8":
        assert bool((codes.abs().amax(-1) == 127).all())
    else:
        assert bool((codes.amin(-1) == 0).all()) and bool((codes.amax(-1) == 15).all())


@pytest.mark.parametrize("low", [-3.5, -4.5, -10.5])
def test_a_range_of_fifteen_steps_with_zero_between_two_of_them_keeps_both_its_ends(low: float) -> None:
    matrix = torch.linspace(low, low + 15, 31).unsqueeze(0)
    first = round_trip("int4", 32, matrix)
    assert float(first.amax() - first.amin()) == 15
    assert torch.equal(round_trip("int4", 32, first), first)


@pytest.mark.parametrize(("name", "group_size"), CASES)
@pytest.mark.parametrize("in_features", [1, 31, 33, 100, 257])
def test_padding_changes_no_element(name: str, group_size: int | None, in_features: int) -> None:
    matrix = 3 + torch.rand(5, in_features)  # far from the zeros that fill up the last group
    whole = in_groups(matrix, group_size).flatten(1)
    padded = round_trip(name, group_size, whole)
    assert torch.equal(round_trip(name, group_size, matrix), padded[:, :in_features])
    assert torch.equal(padded[:, in_features:], torch.zeros_like(padded[:, in_features:]))


@pytest.mark.parametrize(("name", "group_size"), CASES)
@pytest.mark.parametrize("value", [0.0, 1.0, -0.37, 1e-45, -1e-38, 1e-30, 1e30, -1e38, MAX, -MAX])
def test_a_constant_matrix_stays_finite_and_of_its_sign(name: str, group_size: int | None, value: float) -> None:
    found = round_trip(name, group_size, torch.full((3, 100), value))
    assert bool(found.isfinite().all())
    assert bool((found == found[0, 0]).all())
    if 1e-30 <= abs(value) <= 1e38:
        torch.testing.assert_close(found, torch.full((3, 100), value), rtol=0.01, atol=0)
    else:
        assert float(found[0, 0]) * value >= 0


@pytest.mark.parametrize(("name", "group_size"), CASES)
@pytest.mark.parametrize("largest", [0.0, 1e-45, 1e-40, 1e-38, MAX])
@pytest.mark.parametrize("ends", [(-1, 1), (-1, 0.4), (-0.4, 1), (0, 1), (-1, 0)])
def test_the_smallest_and_largest_numbers_give_neither_nan_nor_infinity(
    name: str, group_size: int | None, largest: float, ends: tuple[float, float]
) -> None:
    matrix = torch.linspace(*ends, 256).repeat(2, 1).to(torch.float32) * largest
    groups, params = fitted(name, group_size, matrix)
    assert bool((params.scales > 0).all()) and bool(params.scales.isfinite().all())
    assert bool((params.zeros >= params.lowest).all()) and bool((params.zeros <= params.highest).all())
    found = params.decode(params.encode(groups))
    assert bool(found.isfinite().all()) and bool(found.bfloat16().isfinite().all())


@pytest.mark.parametrize(("name", "group_size"), CASES)
def test_an_outlier_costs_only_its_own_group(name: str, group_size: int | None) -> None:
    matrix = torch.randn(4, 512)
    spoilt = matrix.clone()
    spoilt[1, 5] = 1e4
    same = round_trip(name, group_size, matrix) == round_trip(name, group_size, spoilt)
    assert bool(same[[0, 2, 3]].all())
    assert bool(same[1, group_size or 512 :].all())
    assert abs(float(round_trip(name, group_size, spoilt)[1, 5]) - 1e4) <= 1e4 / 100


@pytest.mark.parametrize(("name", "group_size"), CASES)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_infinity_are_refused(name: str, group_size: int | None, value: float) -> None:
    matrix = torch.randn(4, 100)
    matrix[2, 77] = value
    with pytest.raises(CorruptError, match="NaN or infinite"):
        NEAREST.quantize(matrix, quantized(name), group_size)


@pytest.mark.parametrize(("name", "group_size"), CASES)
def test_block_by_block_gives_what_the_whole_gives(name: str, group_size: int | None) -> None:
    matrix = torch.randn(11, 100)
    whole = NEAREST.quantize(matrix, quantized(name), group_size)
    blocks = Nearest(block_elements=250).quantize(matrix, quantized(name), group_size)
    assert blocks.shape == whole.shape
    assert all(torch.equal(blocks.parts[part], whole.parts[part]) for part in whole.parts)


# llama.cpp, tests/test-quantize-fns.cpp: 32 * 128 numbers 0.1 + 2 cos(i + offset), offset 0 for the weights and 1 for
# what they are multiplied with. Its error is sqrt(sum d^2) / n, not sqrt(sum d^2 / n), and at most 0.002 for all but
# the 2 and 3 bit formats; its dot product error is |difference| / n, at most 0.02.
N = 32 * 128


def llama_cpp_data(offset: float) -> Tensor:
    return (0.1 + 2 * torch.cos(torch.arange(N, dtype=torch.float64) + offset)).float()


@pytest.mark.parametrize(
    ("name", "group_size", "most", "most_dot"),
    [(*case, 0.0001, 0.0005) if case[0] == "int8" else (*case, 0.0012, 0.0075) for case in CASES],
)
def test_errors_on_the_data_of_llama_cpps_own_test(
    name: str, group_size: int | None, most: float, most_dot: float
) -> None:
    weights, inputs = llama_cpp_data(0), llama_cpp_data(1).double()
    found = round_trip(name, group_size, weights.unsqueeze(0)).flatten().double()
    difference = found - weights.double()
    assert 0 < float(difference.square().sum().sqrt()) / N <= most <= 0.002
    assert abs(float(difference @ inputs)) / N <= most_dot <= 0.02


@pytest.mark.parametrize(
    ("name", "group_size", "percent"), [("int8", None, 0.83), ("int4", 32, 8.1), ("int4", 64, 9.1), ("int4", 128, 10.1)]
)
def test_a_matvec_of_normal_weights_is_off_by_the_percentage_that_was_measured(
    name: str, group_size: int | None, percent: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    matrix = 0.02 * torch.randn(512, 2048, generator=generator)
    inputs = torch.randn(2048, 64, generator=generator)
    exact, found = matrix @ inputs, round_trip(name, group_size, matrix) @ inputs
    assert 0.95 * percent <= 100 * float((found - exact).norm() / exact.norm()) <= 1.05 * percent
