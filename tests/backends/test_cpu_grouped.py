"""Weights of the grouped scheme on the CPU engine: the reference's numbers in float32, near them in bfloat16."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from cpu_engine import fed, native, reference, some_tokens, weights_of
from gptfast_cli.core.backends.cpu.views import unsupported_weights
from gptfast_cli.core.config import ModelConfig
from gptfast_cli.core.schemes import Weight
from gptfast_cli.core.schemes.plain import plain
from gptfast_cli.core.schemes.stacked import stack
from grouped_weights import E2M1, FORMATS, IQ4_NL, drawn, scaled, with_values

NARROW = {"e4m3": 2e-2, "e2m1, powers of two": 2e-2, "a scale of the matrix": 2e-2}
TABLES = {"iq4_nl": ("e2m1, powers of two", IQ4_NL), "nvfp4": ("a scale of the matrix", E2M1)}
CASES = [*FORMATS, *TABLES]


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


def matrix(case: str, shape: tuple[int, ...], seed: int) -> Weight:
    name, values = TABLES.get(case, (case, None))
    weight = drawn(name, rows=shape[0], in_features=shape[1], seed=seed)
    return scaled(weight if values is None else with_values(weight, values), shape[1] ** -0.5)


def model_of(case: str, **changes: object) -> tuple[ModelConfig, dict[str, Weight]]:
    """A model whose matrices are stored so; of 300 columns, and 332 of the feed-forward."""
    sizes = {"hidden_size": 300, "intermediate_size": 332, "head_dim": 32, "vocab_size": 99}
    config, weights = weights_of("grouped heads, odd sizes", "float32", **(sizes | changes))
    return config, {
        name: matrix(case, weight.shape, seed) if len(weight.shape) == 2 else weight
        for seed, (name, weight) in enumerate(weights.items())
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("case", CASES)
def test_logits_are_the_references_and_the_same_bits_in_any_pieces(case: str, dtype: torch.dtype) -> None:
    config, weights = model_of(case)
    tokens = some_tokens(99, 24)
    model = native(config, weights, dtype)
    found = fed(model, tokens, [1] * 24)
    expected = fed(reference(config, weights), tokens, [1] * 24)
    error = float((found - expected).norm() / expected.norm())
    assert error < (5e-6 if dtype is torch.float32 else NARROW.get(case, 8e-2)), error
    pieces = [1, 2, 3, 4, 5, 8, 1]
    ends = torch.tensor(pieces).cumsum(0) - 1
    assert torch.equal(fed(model, tokens, pieces), found[ends])


@pytest.mark.parametrize("case", ["4 bits, two levels, offsets", "zero points, ordered"])
def test_any_number_of_threads_gives_the_same_bits(case: str) -> None:
    config, weights = model_of(case)
    tokens = some_tokens(99, 20)
    one, two = (fed(native(config, weights, torch.bfloat16, n_threads=n), tokens, [11, 1, 8]) for n in (1, 2))
    assert torch.equal(one, two)


@pytest.mark.parametrize("case", [case for case in FORMATS if "two levels" in case])
def test_each_block_has_its_own_super_scales(case: str) -> None:
    config, weights = model_of(case, hidden_size=512, intermediate_size=768)
    tokens = some_tokens(99, 9)
    found, expected = (
        fed(each, tokens, [9]) for each in (native(config, weights, torch.float32), reference(config, weights))
    )
    assert float((found - expected).norm() / expected.norm()) < 5e-6


def mixed_model() -> tuple[ModelConfig, dict[str, Weight]]:
    """Query rows of one format above key rows of another and plain value rows, with biases."""
    changes = {"attention_bias": True, "mlp_bias": True, "hidden_size": 256}
    config, weights = model_of("4 bits, two levels, offsets", **changes)
    shapes = [(128, 256), (64, 256)]
    for layer in range(config.n_layers):
        formats = ("4 bits, two levels, offsets", "6 bits, two levels")
        members = [matrix(each, shape, layer) for each, shape in zip(formats, shapes, strict=True)]
        weights[f"layers.{layer}.qkv"] = stack([*members, plain(torch.randn(64, 256) / 16)])
    return config, weights


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_rows_of_several_schemes_are_one_matrix(dtype: torch.dtype) -> None:
    config, weights = mixed_model()
    assert weights["layers.0.qkv"].scheme == "stacked" and not list(unsupported_weights(weights))
    tokens = some_tokens(99, 20)
    found, expected = (fed(each, tokens, [20]) for each in (native(config, weights, dtype), reference(config, weights)))
    assert float((found - expected).norm() / expected.norm()) < (5e-6 if dtype is torch.float32 else 8e-2)


def test_a_tied_head_reads_the_rows_of_the_embedding() -> None:
    config, weights = model_of("6 bits, two levels")
    del weights["head"]
    config, tokens = replace(config, tied_embeddings=True), some_tokens(99, 9)
    found, expected = (
        fed(each, tokens, [9]) for each in (native(config, weights, torch.float32), reference(config, weights))
    )
    assert float((found - expected).norm() / expected.norm()) < 5e-6


def test_what_the_engine_cannot_read_is_known() -> None:
    table = with_values(drawn("5 bits"), (*range(31), 99.0))
    assert list(unsupported_weights({"layers.0.down": table})) == ["this table of 32 values"]
    odd = stack([drawn("8 bits", rows=33), drawn("5 bits")])
    assert list(unsupported_weights({"layers.0.qkv": odd})) == ["stacked matrices of these sizes"]
    gates = stack([drawn("8 bits", rows=32), drawn("5 bits")])
    assert list(unsupported_weights({"layers.0.gate_up": gates}))
    assert list(unsupported_weights({"embedding": gates})) == ["an embedding in several schemes"]
    assert not list(unsupported_weights({"layers.0.qkv": gates}))
