"""Which scheme each weight gets: what was asked for, the usual where nothing was, and a refusal of what cannot be."""

from dataclasses import replace

import pytest

from gptfast_cli.core.config import LlamaSizes, RopeConfig
from gptfast_cli.core.errors import UsageError
from gptfast_cli.core.quantize.allocation import Allocation, AllocationOptions, Storage

SIZES = LlamaSizes(
    n_layers=2,
    dim=8,
    n_heads=2,
    n_kv_heads=1,
    head_dim=4,
    ffn_dim=12,
    vocab_size=10,
    max_context=16,
    norm_eps=1e-5,
    rope=RopeConfig(10000.0),
    attention_bias=True,
)
CONFIG = SIZES.config()
TIED = replace(CONFIG, tied_embeddings=True)
INT8, INT4, PLAIN = Storage("int8"), Storage("int4", 32), Storage("plain")


@pytest.mark.parametrize(
    ("options", "expected", "name"),
    [
        (AllocationOptions("int8"), Allocation(INT8, INT8, INT8), "int8"),
        (AllocationOptions("int4"), Allocation(INT4, INT8, INT8), "int4-g32"),
        (AllocationOptions("int4", 128), Allocation(Storage("int4", 128), INT8, INT8), "int4-g128"),
        (AllocationOptions("plain"), Allocation(PLAIN, PLAIN, PLAIN), "plain"),
        (AllocationOptions("int4", head="plain"), Allocation(INT4, INT8, PLAIN), "int4-g32-head-plain"),
        (
            AllocationOptions("int8", 64, embeddings="int4"),
            Allocation(INT8, Storage("int4", 64), INT8),
            "int8-embeddings-int4-g64",
        ),
    ],
)
def test_what_is_asked_for_is_given_and_named(options: AllocationOptions, expected: Allocation, name: str) -> None:
    allocation = options.allocation(CONFIG)
    assert allocation == expected
    assert str(allocation) == name


def test_every_weight_has_a_storage_and_norms_and_biases_stay_as_they_are() -> None:
    storages = AllocationOptions("int4", embeddings="plain").allocation(CONFIG).of(CONFIG)
    assert list(storages)[:3] == ["embedding", "layers.0.attention_norm", "layers.0.qkv"]
    assert storages["embedding"] == PLAIN and storages["head"] == INT8
    small = {name for name, storage in storages.items() if storage == PLAIN} - {"embedding"}
    assert small == {
        "norm",
        *(f"layers.{layer}.{norm}" for layer in range(2) for norm in ("attention_norm", "ffn_norm")),
        *(f"layers.{layer}.{bias}" for layer in range(2) for bias in ("qkv_bias", "attention_output_bias")),
    }
    assert set(storages.values()) == {PLAIN, INT8, INT4}


@pytest.mark.parametrize("n_columns", [8, 64, 96, 192, 320, 640, 2048, 4096, 11008])
def test_larger_groups_never_make_a_matrix_larger(n_columns: int) -> None:
    sizes = [Storage("int4", size).fitted((7, n_columns)).n_bytes((7, n_columns), 2) for size in (32, 64, 128, 256)]
    assert sizes == sorted(sizes, reverse=True)
    assert Storage("int8").fitted((7, n_columns)) == Storage("int8")


@pytest.mark.parametrize(
    ("n_columns", "asked", "given"),
    [(192, 128, 64), (640, 256, 128), (96, 256, 32), (96, 32, 32), (4096, 256, 256), (4000, 256, 256), (8, 256, 32)],
)
def test_groups_shrink_to_what_the_columns_fill(n_columns: int, asked: int, given: int) -> None:
    assert Storage("int4", asked).fitted((4, n_columns)) == Storage("int4", given)


def test_an_allocation_says_which_matrices_get_smaller_groups() -> None:
    config = replace(SIZES, dim=64, head_dim=32, ffn_dim=256).config()
    allocation = AllocationOptions("int4", 256).allocation(config)
    assert allocation.smaller_groups(config) == {64: Storage("int4", 64)}
    assert allocation.of(config)["layers.1.down"] == Storage("int4", 256)
    assert AllocationOptions("int4").allocation(config).smaller_groups(config) == {}


@pytest.mark.parametrize("option", [{"head": "plain"}, {"embeddings": "plain"}])
def test_a_tied_matrix_is_both_the_embedding_and_the_head(option: dict[str, str]) -> None:
    allocation = AllocationOptions("int4", **option).allocation(TIED)
    assert allocation.embedding == allocation.head == PLAIN
    assert "head" not in allocation.of(TIED)


@pytest.mark.parametrize(
    ("options", "message", "hint"),
    [
        (AllocationOptions("int3"), "no scheme called 'int3'", "Did you mean int"),
        (
            AllocationOptions("int4", embeddings="int5"),
            "--embeddings: there is no scheme",
            "Schemes: int4, int8, plain",
        ),
        (AllocationOptions("int4", 0), "--groupsize 0: int4 has groups of 32, 64, 128 or 256", "--groupsize 32"),
        (AllocationOptions("int4", -32), "--groupsize -32: int4", "--groupsize 32"),
        (AllocationOptions("int8", 64), "int8 has no groups", "Leave out --groupsize"),
        (AllocationOptions("int8", 0), "int8 has no groups", "Leave out --groupsize"),
        (AllocationOptions("int4", head="int8", embeddings="plain"), "are tied (one matrix)", "Give one"),
    ],
)
def test_what_cannot_be_is_refused_with_what_can(options: AllocationOptions, message: str, hint: str) -> None:
    with pytest.raises(UsageError) as refused:
        options.allocation(TIED)
    assert message in refused.value.message
    assert hint in refused.value.hint


WIDE = replace(SIZES, n_layers=6, dim=256, head_dim=128).config()
DEEP = replace(SIZES, n_layers=6).config()


@pytest.mark.parametrize(
    ("layers", "expected", "name"),
    [
        ("0-3=int8,*=int4", [INT8] * 4 + [INT4] * 2, "int8-2-layers-int4-g32"),
        ("0=plain, 5=int8", [PLAIN, INT4, INT4, INT4, INT4, INT8], "int4-g32-1-layer-plain-1-layer-int8"),
        ("*=int8", [INT8] * 6, "int8"),
        (
            "*=int4-g128,2-2=int4-g64",
            [Storage("int4", 128)] * 2 + [Storage("int4", 64)] + [Storage("int4", 128)] * 3,
            None,
        ),
    ],
)
def test_single_layers_can_have_a_storage_of_their_own(layers: str, expected: list[Storage], name: str | None) -> None:
    allocation = AllocationOptions("int4", layers=layers).allocation(DEEP)
    assert [allocation.of_layer(layer) for layer in range(6)] == expected
    assert allocation.of(WIDE)["layers.2.qkv"] == expected[2]
    assert allocation.head == INT8 and allocation.of(DEEP)["layers.2.ffn_norm"] == PLAIN
    assert name in (None, str(allocation))


@pytest.mark.parametrize(
    ("layers", "message", "hint"),
    [
        ("", "cannot parse ''", "0-3=int8"),
        ("0-3", "cannot parse '0-3'", "0-3=int8"),
        ("0-3=int8,", "cannot parse ''", "0-3=int8"),
        ("a=int8", "cannot parse 'a=int8'", "0-3=int8"),
        ("3-1=int8", "does not have", "6 layers, from 0 to 5"),
        ("4-6=int8", "does not have", "6 layers, from 0 to 5"),
        ("0-2=int8,2=int4", "layer 2 is named twice", "once"),
        ("*=int8,*=int4", "* is named twice", "once"),
        ("0=int5", "no scheme called 'int5'", "Did you mean int"),
        ("0=int8-g32", "int8 has no groups", "Write int8"),
        ("0=int4-g33", "--groupsize 33: int4 has groups", "--groupsize 32"),
    ],
)
def test_choices_that_cannot_be_are_refused(layers: str, message: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        AllocationOptions("int4", layers=layers).allocation(DEEP)
    assert message in caught.value.message and hint in caught.value.hint
