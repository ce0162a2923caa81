"""What every quantized scheme promises, whatever its layout."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gptfast_cli.core.schemes import Weight, quantized, schemes
from gptfast_cli.core.schemes.plain import plain
from quantized_cases import CASES, random_codes

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def some_weight(name: str, group_size: int | None, *, rows: int = 7, in_features: int = 300) -> Weight:
    codes, params = random_codes(name, group_size, rows=rows, in_features=in_features)
    return quantized(name).pack(codes, params, in_features)


@pytest.mark.parametrize(("name", "group_size"), CASES)
@given(rows=st.integers(1, 5), in_features=st.integers(1, 600), seed=st.integers(0, 1000))
def test_what_is_packed_comes_back_as_the_numbers_that_its_codes_stand_for(
    name: str, group_size: int | None, rows: int, in_features: int, seed: int
) -> None:
    codes, params = random_codes(name, group_size, rows=rows, in_features=in_features, seed=seed)
    weight = quantized(name).pack(codes, params, in_features)
    exact = (codes.double() - params.zeros.double().unsqueeze(-1)) * params.scales.double().unsqueeze(-1)
    expected = exact.flatten(1)
    assert torch.equal(expected[:, in_features:], torch.zeros_like(expected[:, in_features:]))
    assert weight.shape == (rows, in_features)
    assert torch.equal(schemes[name].dense(weight, torch.float32), expected[:, :in_features].float())


@pytest.mark.parametrize(("name", "group_size"), CASES)
@settings(max_examples=20)
@given(rows=st.integers(1, 5), in_features=st.integers(1, 600))
def test_an_outline_has_the_parts_of_what_is_packed(
    name: str, group_size: int | None, rows: int, in_features: int
) -> None:
    weight = some_weight(name, group_size, rows=rows, in_features=in_features)
    meta_weight = quantized(name).meta_weight((rows, in_features), group_size)
    assert (meta_weight.scheme, meta_weight.shape, meta_weight.n_bytes) == (name, weight.shape, weight.n_bytes)
    assert list(meta_weight.parts) == list(weight.parts)
    for part, tensor in weight.parts.items():
        assert (tensor.dtype, tensor.shape) == (meta_weight.parts[part].dtype, meta_weight.parts[part].shape)
        assert meta_weight.parts[part].is_meta
    assert schemes[name].is_whole(weight) and schemes[name].is_whole(meta_weight)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "group_size"), CASES)
def test_rows_are_those_of_the_dense_weight(name: str, group_size: int | None, dtype: torch.dtype) -> None:
    weight = some_weight(name, group_size)
    index = torch.tensor([[6, 0, 3], [3, 3, 5]])
    rows = schemes[name].rows(weight, index, dtype)
    assert rows.dtype is dtype
    assert torch.equal(rows, schemes[name].dense(weight, dtype)[index])


@pytest.mark.parametrize(("name", "group_size"), CASES)
def test_no_other_row_is_dequantized(name: str, group_size: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = some_weight(name, group_size, rows=1000)
    sizes: list[int] = []
    monkeypatch.setattr(torch.Tensor, "float", lambda self: sizes.append(self.numel()) or self.to(torch.float32))
    schemes[name].rows(weight, torch.tensor([3, 5]), torch.float32)
    assert sizes and max(sizes) <= 2 * 512


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "group_size"), CASES)
def test_a_dense_weight_is_rounded_once(name: str, group_size: int | None, dtype: torch.dtype) -> None:
    weight = some_weight(name, group_size)
    assert torch.equal(schemes[name].dense(weight, dtype), schemes[name].dense(weight, torch.float32).to(dtype))


@pytest.mark.parametrize(("name", "group_size"), CASES)
def test_moving_a_weight_to_where_it_is_copies_nothing_and_keeps_its_dtypes(name: str, group_size: int | None) -> None:
    weight = some_weight(name, group_size)
    moved = schemes[name].to(weight, torch.device("cpu"), torch.float16)
    assert (moved.scheme, moved.shape) == (weight.scheme, weight.shape)
    assert all(moved.parts[part].data_ptr() == tensor.data_ptr() for part, tensor in weight.parts.items())
    assert all(moved.parts[part].dtype is tensor.dtype for part, tensor in weight.parts.items())


def damages(weight: Weight) -> dict[str, Weight]:
    first, *others = weight.parts
    some = weight.parts[first]
    kept = {name: weight.parts[name] for name in others}

    def put(shape: tuple[int, ...] = weight.shape, **parts: Any) -> Weight:
        return Weight(weight.scheme, shape, parts)

    return {
        "a part is missing": put(**kept),
        "a part too many": put(**weight.parts, more=some),
        "another dtype": put(**kept, **{first: some.to(torch.int32)}),
        "a row less": put(**kept, **{first: some[1:]}),
        "a row more than stored": put((weight.shape[0] + 1, *weight.shape[1:]), **weight.parts),
        "a flat part": put(**kept, **{first: some.flatten()}),
        "a part without elements": put(**kept, **{first: some[..., :0]}),
        "a shape of one axis": put(weight.shape[:1], **weight.parts),
    }


@pytest.mark.parametrize("damage", damages(plain(torch.ones(2, 2))))
@pytest.mark.parametrize(("name", "group_size"), [*CASES, ("plain", None)])
def test_a_weight_with_other_parts_than_its_shape_asks_for_is_not_whole(
    name: str, group_size: int | None, damage: str
) -> None:
    sound = plain(torch.randn(7, 300)) if name == "plain" else some_weight(name, group_size)
    assert schemes[name].is_whole(sound)
    assert not schemes[name].is_whole(damages(sound)[damage])


def test_plain_is_no_quantized_scheme() -> None:
    with pytest.raises(AssertionError):
        quantized("plain")


@pytest.mark.parametrize(("name", "group_size"), CASES)
def test_a_compiled_function_dequantizes_to_the_same_numbers(name: str, group_size: int | None) -> None:
    weight, scheme = some_weight(name, group_size), schemes[name]
    compiled = torch.compile(
        lambda parts: scheme.dense(Weight(name, weight.shape, parts), torch.float32), backend="eager"
    )
    assert torch.equal(compiled(dict(weight.parts)), scheme.dense(weight, torch.float32))
