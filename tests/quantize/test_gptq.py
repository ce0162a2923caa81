"""GPTQ beside a float64 version of it written from the paper's equations, and at the edges of what it is given."""

import sys

import pytest
import torch
from torch import Tensor

from gptfast_cli.core.device import peak_memory_bytes, reset_peak_memory
from gptfast_cli.core.errors import CorruptError
from gptfast_cli.core.quantize.quantizers import Compensation, Inputs, UnusableInputsError
from gptfast_cli.core.quantize.quantizers.gptq import PLUG as GPTQ
from gptfast_cli.core.quantize.quantizers.gptq import Gptq, inverse_factor
from gptfast_cli.core.quantize.quantizers.search import PLUG as SEARCH
from gptfast_cli.core.schemes import Weight, quantized
from gptq_oracle import DAMPING, brute_force, inputs_of, output_error
from quantized_cases import CASES


def rounded(matrix: Tensor, inputs: Inputs, name: str, group_size: int | None, **compensation: int) -> Weight:
    rounding = GPTQ.calibrated(inputs, Compensation(DAMPING, **compensation))
    return rounding.quantize(matrix, quantized(name), group_size)


def dense(weight: Weight) -> Tensor:
    return quantized(weight.scheme).dense(weight, torch.float32)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("name", "group_size"), [("int4", 32), ("int4", 64), ("int8", None)])
def test_every_number_is_that_of_a_float64_version_of_the_papers_equations(
    name: str, group_size: int | None, seed: int
) -> None:
    matrix = torch.randn(6, 150, generator=torch.Generator().manual_seed(seed))
    inputs = inputs_of(150, seed=seed)
    found = dense(rounded(matrix, inputs, name, group_size, block_size=50))
    expected = brute_force(matrix, inputs, quantized(name), group_size)
    same = found == expected.float()
    assert float(same.float().mean()) > 0.995  # a weight half-way between two codes may go either way, and so on
    errors = [output_error(matrix, each, inputs) for each in (found, expected)]
    assert errors[0] == pytest.approx(errors[1], rel=0.01)


@pytest.mark.parametrize(("name", "group_size"), CASES)
@pytest.mark.parametrize("in_features", [100, 256])
def test_outputs_are_off_by_much_less_than_after_a_search(name: str, group_size: int | None, in_features: int) -> None:
    matrix, inputs = torch.randn(40, in_features), inputs_of(in_features)
    searched = dense(SEARCH.quantize(matrix, quantized(name), group_size))
    found = dense(rounded(matrix, inputs, name, group_size))
    assert found.shape == matrix.shape
    assert output_error(matrix, found, inputs) < 0.7 * output_error(matrix, searched, inputs)


@pytest.mark.parametrize(("name", "group_size"), [("int4", 32), ("int4", 128), ("int8", None)])
@pytest.mark.parametrize("block_size", [1, 33, 128, 10_000])
def test_the_size_of_a_block_is_a_matter_of_speed(name: str, group_size: int | None, block_size: int) -> None:
    matrix, inputs = torch.randn(16, 300), inputs_of(300)
    found, usual = (dense(rounded(matrix, inputs, name, group_size, block_size=size)) for size in (block_size, 64))
    assert float((found == usual).float().mean()) > 0.99
    assert output_error(matrix, found, inputs) == pytest.approx(output_error(matrix, usual, inputs), rel=0.02)


def test_rows_by_themselves_are_rounded_as_all_of_them_together() -> None:
    matrix, inputs = torch.randn(11, 100), inputs_of(100)
    whole = rounded(matrix, inputs, "int4", 32)
    by_blocks = Gptq(block_elements=250).calibrated(inputs, Compensation(DAMPING))
    blocks = by_blocks.quantize(matrix, quantized("int4"), 32)
    assert float((dense(blocks) == dense(whole)).float().mean()) > 0.99


def test_a_groups_grid_is_that_of_its_weights_as_the_groups_before_have_left_them() -> None:
    """Two groups of the same inputs: the second makes good for the first, which takes it out of its first range."""
    matrix = torch.cat([torch.full((1, 32), 0.53), torch.full((1, 32), 0.01)], dim=1)
    x = torch.randn(2000, 32)
    x = torch.cat([2 * x, x + 0.01 * torch.randn(2000, 32)], dim=1)
    matrix[0, :32] += 0.4 * torch.randn(32)
    found = dense(rounded(matrix, Inputs(x.t() @ x / 2000, 2000), "int4", 32))
    assert float(found[0, 32:].abs().amax()) > 0.03


def test_columns_without_inputs_are_rounded_to_nearest_and_disturb_no_other() -> None:
    matrix, inputs = torch.randn(8, 96), inputs_of(96)
    dead = [3, 40, 41, 95]
    inputs.moments[dead] = 0
    inputs.moments[:, dead] = 0
    weight = rounded(matrix, inputs, "int4", 32)
    found, steps = dense(weight), weight.parts["scales"].float().repeat_interleave(32, dim=1)
    inside = (matrix[:, dead] - found[:, dead]).abs() <= 0.5001 * steps[:, dead]
    assert float(inside.float().mean()) > 0.7  # the others may be cut off by the search
    assert bool(found.isfinite().all())


def test_more_damping_is_tried_where_the_moments_have_no_factor() -> None:
    """A symmetric matrix with an eigenvalue of -0.05 times its mean diagonal: 1 % is too little, 10 % will do."""
    basis = torch.linalg.qr(torch.randn(64, 64)).Q
    values = torch.linspace(0.5, 1.5, 64)
    values[0] = -0.05
    moments = (basis * values) @ basis.t()
    factor = inverse_factor((moments + moments.t()) / 2, torch.arange(64), 0.01)
    damped = moments + 0.1 * moments.diagonal().mean() * torch.eye(64)
    torch.testing.assert_close(factor.t() @ factor, torch.linalg.inv(damped), rtol=1e-3, atol=1e-3)
    assert bool((factor.tril(-1) == 0).all())


def test_a_factor_that_is_made_in_pieces_is_the_same() -> None:
    moments, order = inputs_of(101).moments, torch.randperm(101)
    whole = inverse_factor(moments, order, DAMPING)
    damped = moments.double() + DAMPING * moments.diagonal().mean() * torch.eye(101)
    inverse = torch.linalg.inv(damped[order.unsqueeze(1), order])
    torch.testing.assert_close((whole.t() @ whole).double(), inverse, rtol=1e-4, atol=1e-4 * float(inverse.amax()))
    pieces = inverse_factor(moments, order, DAMPING, n_columns=16)
    torch.testing.assert_close(pieces, whole, rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(sys.platform != "linux", reason="only there a peak can be reported anew")
def test_one_matrix_is_held_beside_the_moments() -> None:
    moments, order, cpu = torch.eye(3000), torch.randperm(3000), torch.device("cpu")
    inverse_factor(torch.eye(900), torch.arange(900), DAMPING)  # what the libraries set up for themselves stays
    reset_peak_memory(cpu)
    before = peak_memory_bytes(cpu)
    inverse_factor(moments, order, DAMPING)
    assert peak_memory_bytes(cpu) - before < 1.8 * moments.nbytes


@pytest.mark.parametrize(
    ("moments", "n_tokens", "why"),
    [
        (torch.eye(64), 255, "only 255 tokens reached its 64 columns"),
        (torch.zeros(64, 64), 1000, "cannot be inverted"),
        (torch.full((64, 64), torch.nan), 1000, "cannot be inverted"),
    ],
)
def test_inputs_of_which_nothing_can_be_learned_are_named(moments: Tensor, n_tokens: int, why: str) -> None:
    with pytest.raises(UnusableInputsError, match=why):
        rounded(torch.randn(4, 64), Inputs(moments, n_tokens), "int4", 32)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_nan_and_infinity_are_refused_rather_than_passed_on(value: float) -> None:
    matrix = torch.randn(4, 64)
    matrix[2, 33] = value
    with pytest.raises(CorruptError, match="NaN or infinite"):
        rounded(matrix, inputs_of(64), "int4", 32)


@pytest.mark.parametrize(("name", "group_size"), CASES)
def test_without_inputs_it_does_as_search_does(name: str, group_size: int | None) -> None:
    matrix = torch.randn(5, 100)
    found, searched = (rounding.quantize(matrix, quantized(name), group_size) for rounding in (GPTQ, SEARCH))
    assert all(torch.equal(found.parts[part], searched.parts[part]) for part in found.parts)
