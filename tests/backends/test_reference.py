"""What the reference promises beyond the right numbers: in float32, the same bits in any company."""

import pytest
import torch

from gptfast_cli.core.backends.base import KEY_BLOCK, Norm
from gptfast_cli.core.backends.reference import matmul, rms_norm, silu, weighted_sum
from gptfast_cli.core.schemes.plain import plain


@pytest.fixture(autouse=True, params=[1, 2], ids=["1-thread", "2-threads"])
def _threads(request: pytest.FixtureRequest) -> object:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("k", "n"), [(36, 52), (61, 97), (768, 260), (2048, 33)])
@pytest.mark.parametrize("rows", [1, 2, 3, 5, 8, 17, 100])
def test_a_row_of_a_product_does_not_depend_on_the_other_rows(k: int, n: int, rows: int) -> None:
    a, b = torch.randn(rows, k), torch.randn(n, k).t()
    alone = torch.cat([matmul(row.unsqueeze(0), b) for row in a])
    assert torch.equal(matmul(a, b), alone)
    torch.testing.assert_close(alone.double(), a.double() @ b.double(), rtol=0, atol=1e-6 * k)


@pytest.mark.parametrize("n_keys", [KEY_BLOCK, 3 * KEY_BLOCK, 11 * KEY_BLOCK])
def test_a_sum_over_keys_does_not_depend_on_the_room_behind_them(n_keys: int) -> None:
    used = n_keys - 7
    weights, values = torch.rand(2, 5, n_keys), torch.randn(2, n_keys, 24)
    weights[..., used:] = 0
    longer = torch.zeros(2, 5, 16 * KEY_BLOCK)
    longer[..., :n_keys] = weights
    room = torch.cat([values, torch.randn(2, 16 * KEY_BLOCK - n_keys, 24)], dim=1)
    assert torch.equal(weighted_sum(weights, values), weighted_sum(longer, room))
    torch.testing.assert_close(
        weighted_sum(weights, values).double(), weights.double() @ values.double(), rtol=0, atol=1e-3
    )


def test_an_activation_is_the_same_wherever_it_stands() -> None:
    x = 4 * torch.randn(300, 1111)
    assert torch.equal(silu(x), torch.cat([silu(row) for row in x.split(7)]))
    torch.testing.assert_close(silu(x), torch.nn.functional.silu(x))


def test_the_largest_negative_input_is_activated_to_zero() -> None:
    assert silu(torch.tensor([-torch.finfo(torch.float32).max])).item() == 0


def test_a_normalized_row_does_not_depend_on_the_other_rows() -> None:
    norm = Norm(plain(torch.rand(1111)), 1e-5)
    x = torch.randn(300, 1111)
    assert torch.equal(rms_norm(x, norm), torch.cat([rms_norm(row, norm) for row in x]).view_as(x))
