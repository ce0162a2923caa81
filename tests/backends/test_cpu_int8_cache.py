"""The CPU engine codes keys and values as the reference does, and reads them alike; the same bits in any pieces."""

import statistics

import pytest
import torch

from cpu_engine import (
    SHAPES,
    copy_blocks,
    fed,
    filled_cache,
    native,
    reference,
    relative_error,
    some_tokens,
    weights_of,
)
from gptfast_cli.core.backends.base import KEY_BLOCK
from gptfast_cli.core.backends.layer_cache import FloatCache, Int8Cache, gathered, quantized
from gptfast_cli.core.models.native import NativeModel

pytestmark = pytest.mark.usefixtures("no_gradients")

DTYPES = [torch.float32, torch.bfloat16]
INT8 = torch.int8
# between what both make of one cache: the order of sums; the mantissa of bfloat16
BOUNDS = {torch.float32: 5e-6, torch.bfloat16: 2e-2}


def in_int8(shape: str, dtype: torch.dtype, *, n_threads: int = 1) -> NativeModel:
    return native(*weights_of(shape, "float32"), dtype, n_threads=n_threads, kv_dtype=INT8)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "bfloat16"])
def test_a_cache_is_read_as_the_reference_reads_it(shape: str, dtype: torch.dtype) -> None:
    config, weights = weights_of(shape, "float32")
    model, oracle = in_int8(shape, dtype), reference(config, weights, kv_dtype=INT8)
    tokens, errors = some_tokens(config.vocab_size, 300), []
    ours, theirs = (filled_cache(each, 1, 300) for each in (model, oracle))
    for n, token in enumerate(tokens):
        if n % 23 == 22:  # with what stands there now the reference makes the same step
            copy_blocks(ours, theirs)
            theirs.lengths[0] = n
            expected = oracle.step([[token]], theirs, slice(None))
        given = model.step([[token]], ours, slice(None))
        ours.advance(slice(None), 1)
        if n % 23 == 22:
            errors.append(relative_error(given, expected))
    # a value of the step itself may be on the border of two codes
    assert statistics.median(errors) < BOUNDS[dtype]
    assert max(errors) < 2e-2


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "bfloat16"])
def test_codes_and_scales_are_the_references(shape: str, dtype: torch.dtype) -> None:
    model, n = in_int8(shape, dtype), 2 * KEY_BLOCK
    tokens = some_tokens(model.config.vocab_size, n)
    coded, exact = (filled_cache(each, 1, n) for each in (model, native(*weights_of(shape, "float32"), dtype)))
    model.step([tokens], coded, slice(None))
    oracles = [reference(*weights_of(shape, "float32"), dtype, kv_dtype=kv_dtype) for kv_dtype in (INT8, None)]
    as_coded, as_exact = (filled_cache(oracle, 1, n) for oracle in oracles)
    copy_blocks(coded, as_coded)
    for layer in as_coded.whole():
        assert isinstance(layer, Int8Cache)
        codes, scales = quantized(torch.unflatten(layer.recent_keys, 2, (2, KEY_BLOCK)), dim=-2)
        assert torch.equal(gathered(layer.key_scales, layer.table), scales)
        keys = codes.float() * scales.unsqueeze(-2)
        assert torch.equal(layer.coded_keys(torch.float32), keys.flatten(2, 3))
    if dtype is torch.float32:  # in bfloat16 values are rounded before they can be seen
        native(*weights_of(shape, "float32"), dtype).step([tokens], exact, slice(None))
        copy_blocks(exact, as_exact)
        first, plain = as_coded.whole()[0], as_exact.whole()[0]
        assert isinstance(first, Int8Cache) and isinstance(plain, FloatCache)
        codes, scales = quantized(gathered(plain.values, plain.table), dim=-1)
        assert torch.equal(gathered(first.value_scales, first.table), scales)
        assert torch.equal(gathered(first.value_codes, first.table).transpose(3, 4).flatten(2, 3), codes)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "bfloat16"])
def test_logits_are_near_the_references(shape: str, dtype: torch.dtype) -> None:
    config, weights = weights_of(shape, "float32")
    tokens = some_tokens(config.vocab_size, 300)
    expected = fed(reference(config, weights, kv_dtype=INT8), tokens, [1] * 300)
    assert relative_error(fed(in_int8(shape, dtype), tokens, [1] * 300), expected) < (
        2e-3 if dtype is torch.float32 else 3e-2
    )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "bfloat16"])
def test_a_text_gives_the_same_bits_in_whatever_pieces_it_is_fed(shape: str, dtype: torch.dtype) -> None:
    model = in_int8(shape, dtype)
    tokens = some_tokens(model.config.vocab_size, 400)
    alone = fed(model, tokens, [1] * 400)
    for pieces in ([400], [1, 2, 5, 8, 17, 3, 16, 9, 130, 209], [126, 3, 1, 124, 6, 140]):
        ends = torch.tensor(pieces).cumsum(0) - 1
        assert torch.equal(fed(model, tokens, pieces, row=1, n_rows=2), alone[ends])


@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "bfloat16"])
def test_a_row_of_a_batch_has_the_bits_that_it_has_alone(dtype: torch.dtype) -> None:
    model = in_int8("grouped heads, odd sizes", dtype)
    texts, n_rows = [some_tokens(model.config.vocab_size, 300 + row)[row:] for row in range(9)], 9
    cache = filled_cache(model, n_rows, 300)
    for row, text in enumerate(texts):  # at unlike places, some of which come to the end of a block
        n = 110 + 15 * row
        model.step([text[:n]], cache, slice(row, row + 1))
        cache.advance(slice(row, row + 1), n)
    for step in range(30):
        logits = model.step([[text[110 + 15 * row + step]] for row, text in enumerate(texts)], cache, slice(None))
        cache.advance(slice(None), 1)
    for row, text in enumerate(texts):
        n = 140 + 15 * row
        assert torch.equal(logits[row], fed(model, text[:n], [n])[-1])


@pytest.mark.parametrize("shape", ["one key head, biases", "many queries a head"])  # threads share out chunks of keys
def test_any_number_of_threads_gives_the_same_bits(shape: str) -> None:
    for dtype in DTYPES:
        results = []
        for n_threads in (1, 3):
            model = in_int8(shape, dtype, n_threads=n_threads)
            tokens = some_tokens(model.config.vocab_size, 519)
            results.append(fed(model, tokens, [250, 3, 1, 1, 1, 260, 1, 1, 1]))
        assert torch.equal(*results)


@pytest.mark.parametrize("kept", [125, 127, 128, 129, 255])
@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "bfloat16"])
def test_what_was_drafted_in_vain_leaves_no_trace(kept: int, dtype: torch.dtype) -> None:
    model = in_int8("grouped heads, odd sizes", dtype)
    tokens, others = some_tokens(model.config.vocab_size, 400), [7, 8, 9] * 50
    cache = filled_cache(model, 1, 400)
    model.step([tokens[:kept]], cache, slice(None))
    cache.advance(slice(None), kept)
    for n in (1, 6, KEY_BLOCK):
        model.step([others[:n]], cache, slice(None))
    assert torch.equal(model.step([tokens[kept:]], cache, slice(None)), fed(model, tokens, [400]))
