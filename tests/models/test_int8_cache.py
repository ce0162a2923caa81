"""Keys and values in int8: attention over what their codes stand for, whichever way the text was fed."""

import pytest
import torch
from torch import Tensor

from gptfast_cli.core.backends.base import KEY_BLOCK, RopePositions
from gptfast_cli.core.backends.reference import Reference
from gptfast_cli.core.config import AttentionSpec
from gptfast_cli.core.models.kv_cache import KVCache
from gptfast_cli.core.models.transformer import Transformer
from llama_oracle import SHAPES, ours, random_llama

pytestmark = pytest.mark.usefixtures("no_gradients")

INT8 = torch.int8


def in_int8(**shape: object) -> Transformer:
    return ours(random_llama(**shape), kv_dtype=INT8)


def logits(model: Transformer, tokens: Tensor) -> Tensor:
    return model.logits(model.forward(tokens, model.new_cache(tokens.shape[0])))


def some_tokens(n_rows: int, n_tokens: int) -> Tensor:
    return torch.randint(33, (n_rows, n_tokens), generator=torch.Generator().manual_seed(0))


def rounded(x: Tensor, dim: int) -> Tensor:
    """The nearest of 255 numbers about 0, of which the largest is that of x along `dim`."""
    scale = x.abs().amax(dim, keepdim=True) / 127
    return torch.where(scale == 0, 0, (x / scale).round() * scale)


def attention_by_hand(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """One query head, [time, head_dim] float64: each position by itself, over keys and values that are rounded."""
    n, out = len(q), torch.empty_like(q)
    whole = [rounded(k[first : first + KEY_BLOCK], dim=0) for first in range(0, n - n % KEY_BLOCK, KEY_BLOCK)]
    for t in range(n):
        own = t // KEY_BLOCK
        keys = torch.cat([*whole[:own], k[own * KEY_BLOCK : t + 1]])
        weights = (keys @ q[t] / q.shape[1] ** 0.5).softmax(0)
        out[t] = weights @ rounded(v[: t + 1], dim=1)
    return out


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """That of the reference, [time, heads, head_dim], fed fifty tokens at a time."""
    (n, n_heads, head_dim), n_key_heads = q.shape, k.shape[1]
    sizes = {"num_attention_heads": n_heads, "num_key_value_heads": n_key_heads, "head_dim": head_dim}
    config = ours(random_llama(**sizes)).config
    cache = KVCache(config, 1, dtype=torch.float32, kv_dtype=INT8, device=torch.device("cpu"))
    cache.begin(slice(None), [n])
    layer, heads, spec = cache.whole()[0], [], AttentionSpec(n_heads, n_key_heads, head_dim)
    for at in torch.arange(n).split(50):
        place = RopePositions(at[None], None, None)
        layer.write(k[None, at], v[None, at], place.positions)
        heads.append(Reference().attend(q[None, at], layer, place=place, spec=spec)[0])
    return torch.cat(heads).view(n, n_heads, head_dim)


def some_heads(head_dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries of six heads, keys and values of two, [300, heads, head_dim]."""
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(300, n_heads, head_dim, generator=generator) for n_heads in (6, 2, 2))
    return q, k, v


@pytest.mark.parametrize("head_dim", [16, 14])
def test_attention_is_that_over_rounded_keys_and_values(head_dim: int) -> None:
    q, k, v = some_heads(head_dim)
    v[5] = 0
    given = attention(q, k, v).double()
    for head in range(6):
        expected = attention_by_hand(q[:, head].double(), k[:, head // 3].double(), v[:, head // 3].double())
        torch.testing.assert_close(given[:, head], expected, rtol=0, atol=1e-5)


def test_a_channel_that_is_large_in_all_keys_costs_the_others_nothing() -> None:
    q, k, v = some_heads(16)
    expected = attention(q, k, v)
    q[..., 3] /= 64
    k[..., 3] *= 64
    assert torch.equal(attention(q, k, v), expected)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("chunk", [1, 5, 64])
def test_fed_in_pieces_a_text_has_the_bits_of_the_whole(shape: str, chunk: int) -> None:
    model, tokens = in_int8(**SHAPES[shape]), some_tokens(1, 301)
    cache = model.new_cache(1)
    pieces = [model.logits(model.forward(piece, cache)) for piece in tokens.split(chunk, dim=1)]
    assert torch.equal(torch.cat(pieces, dim=1), logits(model, tokens))


def test_it_differs_from_the_whole_cache_by_little_but_it_does() -> None:
    tokens = some_tokens(1, 301)
    coded, exact = logits(in_int8(), tokens), logits(ours(random_llama()), tokens)
    errors = (coded - exact).norm(dim=-1) / exact.norm(dim=-1)
    assert 1e-4 < float(errors[0, KEY_BLOCK:].mean()) < 2e-2


@pytest.mark.parametrize("time", [1, 6])
def test_a_batch_of_ragged_rows_has_the_bits_of_each_row_alone(time: int) -> None:
    model, starts = in_int8(), [0, 3, 257, 126, 123]
    history, tokens = some_tokens(len(starts), max(starts)), some_tokens(len(starts), time)
    batch, alone = model.new_cache(len(starts)), []
    for row, start in enumerate(starts):
        single = model.new_cache(1)
        if start:
            model.forward(history[row : row + 1, :start], batch, rows=slice(row, row + 1))
            model.forward(history[row : row + 1, :start], single)
        alone.append(model.logits(model.forward(tokens[row : row + 1], single)))
    assert torch.equal(model.logits(model.forward(tokens, batch)), torch.cat(alone))


@pytest.mark.parametrize("lengths", [(1, 5, 3), (300, 2, 140)])
def test_rows_that_are_fed_unlike_numbers_of_tokens_keep_their_own_keys(lengths: tuple[int, ...]) -> None:
    model, texts = in_int8(), some_tokens(3, 700)
    cache, after = model.new_cache(3), []
    model.forward(texts[:, :130], cache)
    told = model.feed([text[130 : 130 + n] for text, n in zip(texts, lengths, strict=True)], cache, slice(None))
    for row, n in enumerate(lengths):
        cache.advance(slice(row, row + 1), n)
    for row, n in enumerate(lengths):
        own = texts[row : row + 1, 130 + n : 140 + n]
        after.append(model.logits(model.forward(own, cache, rows=slice(row, row + 1)))[0])
    expected = [logits(model, texts[row : row + 1, : 140 + n])[0] for row, n in enumerate(lengths)]
    assert torch.equal(told, torch.cat([each[130:-10] for each in expected]))
    assert torch.equal(torch.cat(after), torch.cat([each[-10:] for each in expected]))


@pytest.mark.parametrize("kept", [125, 127, 128, 129, 255])
def test_what_was_drafted_in_vain_leaves_no_trace(kept: int) -> None:
    model, tokens, others = in_int8(), some_tokens(1, 400), some_tokens(2, KEY_BLOCK)[1:]
    cache = model.new_cache(1)
    model.forward(tokens[:, :kept], cache)
    for n in (1, 6, KEY_BLOCK):
        model.forward(others[:, :n], cache)
        cache.rollback(0, kept)
    x = model.forward(tokens[:, kept:], cache)
    assert torch.equal(model.logits(x), logits(model, tokens)[:, kept:])


def test_a_row_is_gone_on_from_at_its_end_or_after_a_whole_block() -> None:
    cache = in_int8().new_cache(2)
    cache.begin(slice(0, 1), [300])
    cache.advance(slice(0, 1), 300)
    assert [cache.reusable_length(0, n) for n in (300, 299, 256, 255, 127, 0)] == [300, 256, 256, 128, 0, 0]
    cache.begin(slice(None), [1, 301])  # and something comes between
    assert cache.reusable_length(0, 300) == 256


def test_a_copied_row_goes_on_as_the_other_does() -> None:
    model, tokens = in_int8(), some_tokens(1, 320)
    cache = model.new_cache(2)
    model.forward(tokens[:, :300], cache, rows=slice(0, 1))
    expected = logits(model, tokens)
    for n in (300, 256):
        cache.share(0, 1, n)
        x = model.forward(tokens[:, n:], cache, rows=slice(1, 2))
        assert torch.equal(model.logits(x), expected[:, n:])


@pytest.mark.parametrize(("dtype", "share"), [(torch.bfloat16, (0.5, 0.56)), (torch.float32, (0.25, 0.3))])
def test_a_long_text_takes_half_of_bfloat16_and_a_quarter_of_float32(
    dtype: torch.dtype, share: tuple[float, float]
) -> None:
    config = ours(random_llama(head_dim=64)).config
    caches = [KVCache(config, 2, dtype=dtype, kv_dtype=kept, device=torch.device("cpu")) for kept in (INT8, dtype)]
    for cache in caches:
        cache.begin(slice(None), [8192] * 2)
    taken, read = ([count(cache) for cache in caches] for count in (lambda c: c.n_bytes, lambda c: c.bytes_read(8000)))
    for coded, plain in (taken, read):
        assert share[0] < coded / plain < share[1]


def test_a_step_reads_what_a_count_by_hand_says() -> None:
    cache = in_int8().new_cache(1)  # 3 layers, 3 key heads of 12
    per_layer = 2 * (128 + 4) * 36 + 44 * 36 * 4 + 300 * (36 + 4 * 3)  # blocks, own block in float32, values
    assert cache.bytes_read(300) == 3 * per_layer
    assert cache.bytes_read(0) == 0
