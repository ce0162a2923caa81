"""A part of a weight is exactly that part of its numbers, in every scheme and at every size of groups."""

import pytest
import torch

from gptfast_cli.core.errors import UsageError
from gptfast_cli.core.quantize.quantizers import quantizers
from gptfast_cli.core.schemes import Block, Weight, quantized, schemes
from gptfast_cli.core.schemes.plain import plain

STORAGES = [("plain", None), ("int8", None), *(("int4", size) for size in quantized("int4").group_sizes)]


def some_weight(scheme: str, group_size: int | None, shape: tuple[int, int]) -> Weight:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    if scheme == "plain":
        return plain(matrix)
    return quantizers["nearest"].quantize(matrix, quantized(scheme), group_size)


def dense(weight: Weight) -> torch.Tensor:
    assert schemes[weight.scheme].is_whole(weight)
    return schemes[weight.scheme].dense(weight, torch.float32)


@pytest.mark.parametrize(("scheme", "group_size"), STORAGES)
@pytest.mark.parametrize("columns", [(0, 32), (32, 96), (96, 800), (256, 512), (512, 800), (0, 800)])
def test_columns_are_those_of_the_matrix(scheme: str, group_size: int | None, columns: tuple[int, int]) -> None:
    weight = some_weight(scheme, group_size, (6, 800))
    block = weight.block(Block(columns=slice(*columns)))
    assert block.shape == (6, columns[1] - columns[0])
    assert torch.equal(dense(block), dense(weight)[:, slice(*columns)])


@pytest.mark.parametrize(("scheme", "group_size"), STORAGES)
def test_rows_are_those_of_the_matrix(scheme: str, group_size: int | None) -> None:
    weight = some_weight(scheme, group_size, (12, 320))
    block = weight.block(Block(rows=(slice(1, 3), slice(7, 12))))
    assert block.shape == (7, 320)
    assert torch.equal(dense(block), torch.cat([dense(weight)[1:3], dense(weight)[7:12]]))


def test_a_vector_has_rows_alone() -> None:
    vector = plain(torch.arange(10.0))
    assert torch.equal(dense(vector.block(Block(rows=(slice(2, 4), slice(9, 10))))), torch.tensor([2.0, 3.0, 9.0]))
    assert vector.block(Block()) is vector


def test_groups_that_are_not_cut_stay_as_large_as_they_are() -> None:
    weight = some_weight("int4", 128, (4, 1024))
    assert weight.block(Block(columns=slice(256, 640))).parts["codes"].shape == (4, 3, 64)
    assert weight.block(Block(columns=slice(64, 128))).parts["codes"].shape == (4, 1, 32)


def test_a_cut_inside_of_the_smallest_groups_is_refused() -> None:
    with pytest.raises(UsageError, match="cannot be cut at columns 16 and 64"):
        some_weight("int4", 32, (4, 320)).block(Block(columns=slice(16, 64)))
