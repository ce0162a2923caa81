"""The grouped scheme against a brute force in float64 of what its docstring says, element by element."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gptfast_cli.core.errors import UsageError
from gptfast_cli.core.schemes import Block, Weight, schemes
from gptfast_cli.core.schemes.grouped import PLANES, Layout
from gptfast_cli.core.schemes.plain import plain
from gptfast_cli.core.schemes.stacked import members, stack
from grouped_weights import FORMATS, drawn, integers


def code(weight: Weight, row: int, element: int) -> int:
    """A code, read from the bytes as the docstring describes them."""
    bits = int(math.log2(len(weight.parts["values"])))
    per_group = weight.parts["codes"].shape[-1] * 8 // bits
    group, j = divmod(element, per_group)
    found, first, shift = 0, 0, 0
    for width in PLANES[bits]:
        n_bytes = per_group * width // 8
        byte = int(weight.parts["codes"][row, group, first + j % n_bytes])
        found |= (byte >> (j // n_bytes * width) & (1 << width) - 1) << shift
        first, shift = first + n_bytes, shift + width
    return found


def brute(weight: Weight) -> Tensor:
    parts = weight.parts
    bits = int(math.log2(len(parts["values"])))
    per_group = parts["codes"].shape[-1] * 8 // bits
    rounded = torch.empty(weight.shape)
    for row in range(weight.shape[0]):
        for element in range(weight.shape[1]):
            group = element // per_group
            n_groups = parts["scales"].shape[1]

            def param(kind: str) -> float:
                value = torch.tensor(float(parts[f"{kind}s"][row, group]))  # noqa: B023  # called in this turn
                if f"super_{kind}s" in parts:
                    n_super = parts[f"super_{kind}s"].shape[1]
                    value = value * float(parts[f"super_{kind}s"][row, group // -(-n_groups // n_super)])  # noqa: B023
                if kind == "scale" and "matrix_scale" in parts:
                    value = torch.tensor(float(value) * float(parts["matrix_scale"]), dtype=torch.float64).float()
                return float(value)

            value = float(parts["values"][code(weight, row, element)])
            value -= float(parts["zeros"][row, group]) if "zeros" in parts else 0
            product = torch.tensor(value * param("scale"), dtype=torch.float64).float()
            if "offsets" in parts:
                product = (product.double() + param("offset")).float()
            at = int(parts["order"][element]) if "order" in parts else element
            rounded[row, at] = product
    return rounded


@pytest.mark.parametrize("name", FORMATS)
def test_weights_are_those_of_the_formula_to_the_bit(name: str) -> None:
    weight = drawn(name, rows=3, in_features=280)
    assert schemes["grouped"].is_whole(weight)
    assert torch.equal(schemes["grouped"].dense(weight, torch.float32), brute(weight))


@given(bits=st.sampled_from(list(PLANES)), eighths=st.integers(1, 40), seed=st.integers(0, 99))
@settings(max_examples=40)
def test_codes_come_back_from_their_planes(bits: int, eighths: int, seed: int) -> None:
    codes = integers(torch.Generator().manual_seed(seed), 0, 1 << bits, 2, 3, 8 * eighths)
    planes = Layout(bits, 8 * eighths).pack(codes)
    assert planes.shape == (2, 3, bits * eighths)
    assert torch.equal(Layout(bits, 8 * eighths).unpack(planes), codes)


@pytest.mark.parametrize("name", FORMATS)
def test_rows_and_blocks_are_those_of_the_dense_weight(name: str) -> None:
    weight, scheme = drawn(name), schemes["grouped"]
    whole = scheme.dense(weight, torch.float32)
    index = torch.tensor([[5, 0], [2, 2]])
    assert torch.equal(scheme.rows(weight, index, torch.float32), whole[index])
    some_rows = weight.block(Block(rows=(slice(1, 2), slice(3, 6))))
    assert scheme.is_whole(some_rows)
    assert torch.equal(scheme.dense(some_rows, torch.float32), whole[[1, 3, 4, 5]])
    assert weight.block(Block(columns=slice(0, 512))).parts.keys() == weight.parts.keys()
    if "order" in weight.parts:
        with pytest.raises(UsageError, match="order of their groups"):
            weight.block(Block(columns=slice(0, 256)))
        return
    for columns in (slice(0, 256), slice(256, 512), slice(128, 256), slice(192, 320), slice(80, 512)):
        cut = weight.block(Block(columns=columns))
        assert scheme.is_whole(cut), columns
        assert torch.equal(scheme.dense(cut, torch.float32), whole[:, columns]), columns


@pytest.mark.parametrize(
    "damage",
    [
        {"codes": torch.zeros(6, 16, 15, dtype=torch.uint8)},
        {"values": torch.zeros(15)},
        {"values": torch.zeros(16, dtype=torch.float64)},
        {"scales": torch.ones(6, 15, dtype=torch.uint8)},
        {"scales": torch.ones(6, 16, dtype=torch.float64)},
        {"super_scales": torch.ones(6, 3)},
        {"super_offsets": torch.ones(6, 4)},
        {"offsets": torch.ones(5, 16)},
        {"zeros": torch.zeros(6, 16, dtype=torch.int8)},
        {"matrix_scale": torch.ones(2)},
        {"order": torch.arange(511).int()},
        {"order": torch.full((512,), 7).int()},
        {"order": torch.arange(1, 513).int()},
        {"other": torch.ones(6, 16)},
    ],
    ids="-".join,
)
def test_parts_that_do_not_fit_are_not_whole(damage: dict[str, Tensor]) -> None:
    sound = drawn("4 bits, two levels, offsets")
    assert schemes["grouped"].is_whole(sound)
    assert not schemes["grouped"].is_whole(Weight(sound.scheme, sound.shape, sound.parts | damage))
    for missing in ("codes", "values", "scales", "offsets"):
        parts = {name: part for name, part in sound.parts.items() if name != missing}
        assert not schemes["grouped"].is_whole(Weight(sound.scheme, sound.shape, parts)), missing


def test_a_stack_of_one_kind_is_of_that_kind_and_one_of_several_is_stacked() -> None:
    first, second = drawn("6 bits, two levels"), drawn("6 bits, two levels", rows=2, seed=1)
    other = drawn("4 bits, two levels, offsets", rows=3)
    alike, mixed = stack([first, second]), stack([first, second, other, plain(torch.randn(4, 512))])
    assert (alike.scheme, mixed.scheme) == ("grouped", "stacked")
    assert [each.shape[0] for each in members(mixed)] == [8, 3, 4]
    dense = torch.cat([schemes[each.scheme].dense(each, torch.float32) for each in members(mixed)])
    assert torch.equal(dense[:8], schemes["grouped"].dense(alike, torch.float32))
    scheme = schemes["stacked"]
    assert scheme.is_whole(mixed)
    assert torch.equal(scheme.dense(mixed, torch.float32), dense)
    index = torch.tensor([[14, 0, 9], [10, 10, 7]])
    assert torch.equal(scheme.rows(mixed, index, torch.float32), dense[index])
    for rows in ((slice(0, 8),), (slice(2, 12),), (slice(9, 11), slice(3, 5), slice(12, 15))):
        part = mixed.block(Block(rows=rows))
        expected = torch.cat([dense[each] for each in rows])
        assert torch.equal(schemes[part.scheme].dense(part, torch.float32), expected), rows
    half = mixed.block(Block(columns=slice(256, 512)))
    assert torch.equal(schemes[half.scheme].dense(half, torch.float32), dense[:, 256:])


def test_different_tables_of_values_are_not_joined() -> None:
    assert stack([drawn("e2m1, powers of two"), drawn("e2m1, powers of two", seed=1)]).scheme == "stacked"


def test_a_stack_that_lacks_rows_is_not_whole() -> None:
    mixed = stack([drawn("8 bits"), plain(torch.randn(4, 512))])
    assert schemes["stacked"].is_whole(mixed)
    assert not schemes["stacked"].is_whole(Weight("stacked", (11, 512), mixed.parts))
    assert not schemes["stacked"].is_whole(Weight("stacked", mixed.shape, {"0.plain.weight": torch.ones(10, 512)}))
    assert not schemes["stacked"].is_whole(
        Weight("stacked", mixed.shape, mixed.parts | {"2.other.weight": torch.ones(1, 512)})
    )
    assert not schemes["stacked"].is_whole(Weight("stacked", mixed.shape, mixed.parts | {"weight": torch.ones(1, 512)}))
