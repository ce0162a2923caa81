"""The CPU engine gives the reference's numbers for every storage, and the same bits however tokens come together."""

import pytest
import torch
from torch import Tensor

from cpu_engine import SHAPES, STORAGES, fed, filled_cache, native, reference, relative_error, some_tokens, weights_of
from gptfast_cli.core.models.native import NativeModel, unsupported

pytestmark = pytest.mark.usefixtures("no_gradients")

DTYPES = [torch.float32, torch.bfloat16]
# relative error of the logits against the reference in float32: the order of sums alone; eight bits of mantissa through
# three layers; 8-bit inputs
BOUNDS = {"exact": 5e-6, "bfloat16": 2e-2, "codes": 6e-2}


def one_by_one(model: NativeModel, tokens: list[int]) -> Tensor:
    return fed(model, tokens, [1] * len(tokens))


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "bfloat16"])
def test_logits_are_the_references(shape: str, storage: str, dtype: torch.dtype) -> None:
    config, weights = weights_of(shape, storage)
    tokens = some_tokens(config.vocab_size, 40)
    oracle = reference(config, weights)
    expected = oracle.logits(oracle.forward(torch.tensor([tokens]), oracle.new_cache(1)))[0]
    given = one_by_one(native(config, weights, dtype), tokens)
    kind = "exact" if dtype is torch.float32 else "codes" if storage.startswith("int") else "bfloat16"
    assert relative_error(given, expected) < BOUNDS[kind]


@pytest.mark.parametrize("storage", ["int8", "int4-32"])
def test_float_activations_are_nearer_than_rounded_ones(storage: str) -> None:
    config, weights = weights_of("one key head, biases", storage)
    tokens = some_tokens(config.vocab_size, 40)
    expected = fed(reference(config, weights), tokens, [1] * 40)
    rounded = native(config, weights, torch.bfloat16)
    exact = native(config, weights, torch.bfloat16, float_activations=True)
    errors = [relative_error(fed(model, tokens, [1] * 40), expected) for model in (exact, rounded)]
    assert errors[0] < BOUNDS["bfloat16"]
    assert errors[0] <= errors[1]


@pytest.mark.parametrize("storage", ["float32", "bfloat16", "int8", "int4-32", "int4-128"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "bfloat16"])
def test_a_text_gives_the_same_bits_in_whatever_pieces_it_is_fed(shape: str, storage: str, dtype: torch.dtype) -> None:
    config, weights = weights_of(shape, storage)
    tokens = some_tokens(config.vocab_size, 300)  # past a chunk of keys, and more than go through a layer at once
    model = native(config, weights, dtype)
    alone = one_by_one(model, tokens)
    for pieces in ([300], [1, 2, 5, 8, 17, 3, 16, 9, 130, 109]):
        ends = torch.tensor(pieces).cumsum(0) - 1
        assert torch.equal(fed(model, tokens, pieces, row=1, n_rows=2), alone[ends])


@pytest.mark.parametrize("wanted", [[299, 3, 140, 3], [130], [0, 1, 2], []], ids=str)
@pytest.mark.parametrize("n_threads", [1, 2])
def test_logits_of_some_tokens_are_those_among_all(wanted: list[int], n_threads: int) -> None:
    config, weights = weights_of("grouped heads, odd sizes", "int8")
    tokens = some_tokens(config.vocab_size, 300)
    model = native(config, weights, torch.bfloat16, n_threads=n_threads)
    all_of_them = model.feed([torch.tensor(tokens)], model.new_cache(1), slice(None))
    assert torch.equal(model.feed([torch.tensor(tokens)], model.new_cache(1), slice(None), wanted), all_of_them[wanted])


@pytest.mark.parametrize("n_rows", [2, 3, 8, 9, 17])
@pytest.mark.parametrize("storage", ["bfloat16", "int4-32"])
@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "bfloat16"])
def test_a_row_of_a_batch_has_the_bits_that_it_has_alone(n_rows: int, storage: str, dtype: torch.dtype) -> None:
    config, weights = weights_of("grouped heads, odd sizes", storage)
    model = native(config, weights, dtype)
    texts = [some_tokens(config.vocab_size, 30 + row)[row:] for row in range(n_rows)]  # at unlike places, too
    cache = filled_cache(model, n_rows, 64)
    for row in range(n_rows):
        model.step([texts[row][: 5 + row]], cache, slice(row, row + 1))
        cache.advance(slice(row, row + 1), 5 + row)
    for step in range(30 - 5 - n_rows):
        logits = model.step([[texts[row][5 + row + step]] for row in range(n_rows)], cache, slice(None))
        cache.advance(slice(None), 1)
    for row in range(n_rows):
        assert torch.equal(logits[row], one_by_one(model, texts[row][: 30 - n_rows + row])[-1])


@pytest.mark.parametrize("n_threads", [2, 3, 4])
@pytest.mark.parametrize("storage", ["float32", "int8", "int4-32"])
@pytest.mark.parametrize("shape", ["one key head, biases", "many queries a head"])  # threads share out chunks of keys
def test_any_number_of_threads_gives_the_same_bits(n_threads: int, storage: str, shape: str) -> None:
    config, weights = weights_of(shape, storage)
    tokens = some_tokens(config.vocab_size, 519)
    pieces = [250, 3, 1, 1, 1, 260, 1, 1, 1]
    for dtype in DTYPES:
        results = [fed(native(config, weights, dtype, n_threads=n), tokens, pieces) for n in (1, n_threads)]
        assert torch.equal(*results)


def test_a_tied_head_is_the_embedding() -> None:
    config, weights = weights_of("grouped heads, odd sizes", "int8", tie_word_embeddings=True)
    tokens = some_tokens(config.vocab_size, 20)
    model, oracle = native(config, weights, torch.float32), reference(config, weights)
    assert relative_error(fed(model, tokens, [20]), fed(oracle, tokens, [20])) < BOUNDS["exact"]
    assert (model.weight_bytes, model.embedding_bytes) == (oracle.weight_bytes, oracle.embedding_bytes)


def test_a_row_that_is_rolled_back_goes_on_as_if_nothing_had_been_there() -> None:
    config, weights = weights_of("grouped heads, odd sizes", "bfloat16")
    tokens = some_tokens(config.vocab_size, 20)
    model = native(config, weights, torch.bfloat16)
    cache = model.new_cache(1)
    for piece in (tokens[:10], [7, 8, 9]):
        model.step([piece], cache, slice(None))
        cache.advance(slice(None), len(piece))
    cache.rollback(0, 10)
    assert torch.equal(model.step([tokens[10:]], cache, slice(None)), fed(model, tokens, [20]))


def test_a_cache_that_grows_is_found_again() -> None:
    config, weights = weights_of("grouped heads, odd sizes", "bfloat16")
    tokens = some_tokens(config.vocab_size, 300)
    model = native(config, weights, torch.float32)
    cache = model.new_cache(1)
    for first in range(0, 300, 50):
        logits = model.step([tokens[first : first + 50]], cache, slice(None))
        cache.advance(slice(None), 50)
    assert torch.equal(logits, fed(model, tokens, [300]))


@pytest.mark.parametrize(
    ("changes", "dtype", "runs"),
    [
        ({}, torch.float32, True),
        ({}, torch.bfloat16, True),
        ({}, torch.float16, False),
        ({"head_dim": 48}, torch.float32, True),
        ({"head_dim": 48}, torch.bfloat16, False),
        ({"head_dim": 36}, torch.float32, False),
        ({"head_dim": 512}, torch.float32, False),
    ],
)
def test_what_the_engine_cannot_run_is_known(changes: dict[str, int], dtype: torch.dtype, runs: bool) -> None:
    config, _ = weights_of("grouped heads, odd sizes", "float32", **changes)
    assert (unsupported(config, {}, dtype, torch.device("cpu")) is None) is runs
    assert unsupported(config, {}, dtype, torch.device("cuda")) is not None
