"""Layers with a window forget what no query sees: to the bit what a cache that keeps all gives, in less memory."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gptfast_cli.core.backends.base import KEY_BLOCK, RopePositions
from gptfast_cli.core.backends.reference import Reference
from gptfast_cli.core.config import AttentionSpec
from gptfast_cli.core.models.kv_blocks import MOST_ROLLBACK, kv_groups
from gptfast_cli.core.models.kv_cache import KVCache
from gptfast_cli.core.models.transformer import Transformer
from gptfast_cli.core.quantize.sizes import memory_need
from windowed_models import MIXED, NARROW, cache_of_all, config_of, some_tokens, windowed, without_windows

ALL = slice(None)
DTYPES = pytest.mark.parametrize("kv_dtype", [None, torch.int8])


@pytest.fixture(autouse=True)
def _no_gradients() -> object:
    with torch.inference_mode():
        yield


def cache_for(*windows: int | None, n_rows: int = 1) -> KVCache:
    """A float32 cache of one layer for each window."""
    config = config_of([replace(NARROW, window=window) for window in windows])
    return KVCache(config, n_rows, dtype=torch.float32, kv_dtype=torch.float32, device=torch.device("cpu"))


def grow(cache: KVCache, n_tokens: int, *, n_new: int = 1) -> None:
    """Write to the first row until it has so many tokens, `n_new` at a time."""
    while cache.lengths[0] < n_tokens:
        n = min(n_new, n_tokens - cache.lengths[0])
        cache.begin(slice(0, 1), [n])
        cache.advance(slice(0, 1), n)


def n_kept(cache: KVCache) -> list[int]:
    """Blocks that the first row has, by group."""
    return [len(group.rows[0]) - group.firsts[0] for group in cache.groups]


def test_layers_with_like_kv_heads_and_windows_share_blocks() -> None:
    groups = kv_groups(config_of())
    assert [group.layers for group in groups] == [(0, 1, 4), (2,), (3,)]
    assert [group.window for group in groups] == [40, None, 200]


@pytest.mark.parametrize("window", [1, 3, 50, 128, 129, 500])
@pytest.mark.parametrize("chunk", [1, 50, 300])
def test_attention_is_that_over_the_keys_in_the_window(window: int, chunk: int) -> None:
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(700, n_heads, 14, generator=generator) for n_heads in (4, 2, 2))
    cache, spec, heads = cache_for(window), AttentionSpec(4, 2, 14, window=window), []
    for at in torch.arange(700).split(chunk):
        cache.begin(ALL, [len(at)])
        (layer,) = cache.layers(ALL, [int(at[0])], len(at))
        place = RopePositions(at[None], None, None)
        layer.write(k[None, at], v[None, at], place.positions)
        heads.append(Reference().attend(q[None, at], layer, place=place, spec=spec)[0])
        cache.advance(ALL, len(at))
    given = torch.cat(heads).view(700, 4, 14).double()
    for head in range(4):
        own_q, own_k, own_v = q[:, head].double(), k[:, head // 2].double(), v[:, head // 2].double()
        for t in range(0, 700, 7):
            seen = slice(max(0, t + 1 - window), t + 1)
            weights = (own_k[seen] @ own_q[t] / 14**0.5).softmax(0)
            torch.testing.assert_close(given[t, head], weights @ own_v[seen], rtol=0, atol=1e-5)


class Twins:
    """The same texts in two caches of three rows, of which one keeps all keys."""

    def __init__(self, model: Transformer) -> None:
        self.model = model
        self.forgetful, self.whole = model.new_cache(3), cache_of_all(model, 3)
        self._n_fed = 0

    def feed(self, row: int, other: int, n: int) -> None:
        """Feed the same number of tokens to some rows: they see the same."""
        rows = slice(min(row, other), max(row, other) + 1)
        self._n_fed += 1
        tokens = some_tokens(rows.stop - rows.start, n, seed=self._n_fed)
        given, expected = (
            self.model.logits(self.model.forward(tokens, cache, rows=rows)) for cache in (self.forgetful, self.whole)
        )
        assert torch.equal(given, expected)

    def feed_unlike(self, row: int, other: int, n: int) -> None:
        """Feed two rows unlike numbers of tokens in one call."""
        tokens, first = some_tokens(2, n, seed=n), min(row, other, 1)
        lengths = (n, max(1, n // 3))
        fed = [text[:length] for text, length in zip(tokens, lengths, strict=True)]
        given, expected = (
            self.model.feed(fed, cache, slice(first, first + 2)) for cache in (self.forgetful, self.whole)
        )
        assert torch.equal(given, expected)
        for cache in (self.forgetful, self.whole):
            for at, length in enumerate(lengths):
                cache.advance(slice(first + at, first + at + 1), length)

    def roll_back(self, row: int, _: int, n: int) -> None:
        length = max(0, self.forgetful.lengths[row] - n % (MOST_ROLLBACK + 1))
        if all(group.keeps(row, length) for group in self.forgetful.groups):  # it may have been rolled back just before
            for cache in (self.forgetful, self.whole):
                cache.rollback(row, length)

    def share(self, row: int, other: int, n: int) -> None:
        n_tokens = self.forgetful.reusable_length(row, max(0, self.forgetful.lengths[row] - n % 300))
        if row != other:
            for cache in (self.forgetful, self.whole):
                cache.share(row, other, n_tokens)

    def swap(self, row: int, other: int, _: int) -> None:
        if row != other:
            for cache in (self.forgetful, self.whole):
                cache.swap(row, other)

    def keep_in_a_file(self, row: int, other: int, _: int) -> None:
        n_tokens = self.forgetful.truncated(self.forgetful.lengths[row])
        if n_tokens == 0 or self.forgetful.reusable_length(row, n_tokens) < n_tokens:
            return
        for cache in (self.forgetful, self.whole):
            cache.restore(other, n_tokens, cache.save(row, n_tokens))

    def wipe(self, row: int, *_: int) -> None:
        for cache in (self.forgetful, self.whole):
            cache.wipe(row)


ROWS = st.integers(0, 2)
DEEDS = st.sampled_from(
    [
        Twins.feed,
        Twins.feed,
        Twins.feed_unlike,
        Twins.roll_back,
        Twins.share,
        Twins.swap,
        Twins.keep_in_a_file,
        Twins.wipe,
    ]
)
STEPS = st.tuples(DEEDS, ROWS, ROWS, st.one_of(st.integers(1, 6), st.integers(1, 3 * KEY_BLOCK)))
FLOATS, CODES = windowed(), windowed(kv_dtype=torch.int8)


@given(steps=st.lists(STEPS, min_size=3, max_size=12), is_coded=st.booleans())
@settings(max_examples=60, deadline=None)
def test_whatever_is_done_the_logits_are_those_of_a_cache_that_keeps_all(
    steps: list[tuple[Callable[..., None], int, int, int]], is_coded: bool
) -> None:
    twins = Twins(CODES if is_coded else FLOATS)
    for step, *arguments in steps:
        step(twins, *arguments)
    for row in range(3):
        twins.feed(row, row, 2)
    for group in twins.forgetful.groups:
        owned = {block for table, first in zip(group.rows, group.firsts, strict=True) for block in table[first:]}
        assert len(owned) + len(group.pool._free) == group.pool.n_used


@DTYPES
@pytest.mark.parametrize("chunk", [1, 60, 300])
def test_fed_in_pieces_a_text_has_the_bits_of_the_whole(kv_dtype: torch.dtype | None, chunk: int) -> None:
    model, tokens = windowed(kv_dtype=kv_dtype), some_tokens(1, 601)
    whole = model.logits(model.forward(tokens, cache_of_all(model, 1)))
    cache = model.new_cache(1)
    pieces = [model.logits(model.forward(piece, cache)) for piece in tokens.split(chunk, dim=1)]
    assert torch.equal(torch.cat(pieces, dim=1), whole)


@DTYPES
@pytest.mark.parametrize("length", [170, 256, 295, 500])
def test_as_many_tokens_as_may_be_rejected_can_be_taken_back(kv_dtype: torch.dtype | None, length: int) -> None:
    model, tokens, others = windowed(kv_dtype=kv_dtype), some_tokens(1, 520), some_tokens(1, MOST_ROLLBACK, seed=1)
    cache = model.new_cache(1)
    model.forward(tokens[:, :length], cache)
    for drafted in (*others.split(1, dim=1),):  # one by one, as a draft model feeds them
        model.forward(drafted, cache)
    cache.rollback(0, length)
    expected = model.logits(model.forward(tokens, cache_of_all(model, 1)))
    given = model.logits(model.forward(tokens[:, length:], cache))
    assert torch.equal(given, expected[:, length:])


def test_a_row_cannot_be_rolled_back_to_what_it_has_forgotten() -> None:
    cache = cache_for(40)
    grow(cache, 600)
    with pytest.raises(AssertionError):
        cache.rollback(0, 300)
    cache.rollback(0, 0)
    assert cache.groups[0].firsts == [0]


def test_a_prefix_is_reused_only_while_the_window_before_its_end_is_there() -> None:
    cache = cache_for(None, 100)
    grow(cache, 1000)
    kept_from = cache.groups[1].firsts[0] * KEY_BLOCK
    assert kept_from == 768  # 1000 - 128 - 99 = 773 is seen after a rollback
    assert [cache.reusable_length(0, n) for n in (1000, 867, 866, 300, 0)] == [1000, 867, 0, 0, 0]
    grow(short := cache_for(None, 100), 200)
    assert [short.reusable_length(0, n) for n in (200, 101, 1)] == [200, 101, 1]


@pytest.mark.parametrize(("window", "chunk", "most"), [(1, 1, 2), (40, 1, 3), (129, 1, 3), (512, 1, 6), (512, 300, 9)])
def test_a_row_keeps_its_window_and_what_can_be_rolled_back(window: int, chunk: int, most: int) -> None:
    cache, held = cache_for(None, window), 0
    while cache.lengths[0] < 2000:
        cache.begin(ALL, [chunk])
        held = max(held, n_kept(cache)[1])
        cache.advance(ALL, chunk)
    assert held == most == kv_groups(config_of([replace(NARROW, window=window)]))[0].most_kept_blocks(2000, chunk)
    assert n_kept(cache)[0] == -(-cache.lengths[0] // KEY_BLOCK)
    full, narrow = cache.groups
    assert (full.pool.n_used, narrow.pool.n_used) == (n_kept(cache)[0], most)


def test_queries_get_the_blocks_that_they_see_and_no_others() -> None:
    cache = cache_for(None, 256)
    grow(cache, 1500, n_new=300)
    cache.begin(ALL, [4])
    full, narrow = cache.layers(ALL, [1500], 4)
    assert full.key_positions().tolist() == list(range(12 * KEY_BLOCK))
    assert narrow.key_positions().flatten().tolist() == list(range(9 * KEY_BLOCK, 12 * KEY_BLOCK))  # from 1245 on


def test_reserved_memory_is_all_that_long_rows_need() -> None:
    model = windowed()
    cache = model.new_cache(2)
    cache.reserve(1000, 64)
    tensors = [tensor.data_ptr() for tensor in cache.tensors()]
    for piece in some_tokens(2, 1000).split(64, dim=1):
        model.forward(piece, cache)
    cache.whole()
    assert [tensor.data_ptr() for tensor in cache.tensors()] == tensors


def test_what_a_file_keeps_of_a_layer_is_its_window() -> None:
    model = windowed()
    cache = model.new_cache(1)
    for piece in some_tokens(1, 1000).split(100, dim=1):
        model.forward(piece, cache)
    saved = cache.save(0, 1000)
    # the last 40 and the last 200 tokens, a rollback further, and the block in which that begins
    assert [saved[f"keys.{layer}"].shape[1] for layer in range(5)] == [232, 232, 1000, 360, 232]
    for damaged in (
        saved | {"keys.0": saved["keys.0"][:, 128:]},
        saved | {name: saved[name][:, -20:] for name in saved if name.endswith((".0", ".1", ".4"))},
        saved | {"keys.2": saved["keys.2"][:, 128:], "values.2": saved["values.2"][:, 128:]},
        {name: each for name, each in saved.items() if name != "keys.3"},
    ):
        with pytest.raises(ValueError, match="another shape or dtype"):
            cache.restore(0, 1000, damaged)
    assert cache.lengths == [1000]


def by_hand(n_tokens: int, window: int) -> int:
    """Bytes that a query after so many tokens reads of two KV heads of 14 in int8, with recent keys in float32."""
    seen = range(max(0, n_tokens - window + 1), n_tokens)
    own = [position for position in seen if position // KEY_BLOCK == n_tokens // KEY_BLOCK]
    blocks = {position // KEY_BLOCK for position in seen if position not in own}
    keys = 28 * ((len(seen) - len(own)) + 4 * len(blocks) + 4 * len(own))
    return keys + len(seen) * (28 + 2 * 4)


@pytest.mark.parametrize("n_tokens", [0, 1, 39, 128, 200, 256, 1000])
@pytest.mark.parametrize("window", [1, 40, 300])
def test_a_step_reads_what_its_window_has(n_tokens: int, window: int) -> None:
    config = config_of([replace(NARROW, window=window)] * 2)
    floats, codes = (
        KVCache(config, 1, dtype=torch.float32, kv_dtype=kv_dtype, device=torch.device("cpu"))
        for kv_dtype in (torch.float32, torch.int8)
    )
    assert floats.bytes_read(n_tokens) == 2 * min(n_tokens, window - 1) * 2 * 28 * 4
    assert codes.bytes_read(n_tokens) == 2 * by_hand(n_tokens, window)


def test_kernels_find_no_block_where_one_was_given_back() -> None:
    config = config_of([replace(NARROW, window=100)])
    kind = {"dtype": torch.float32, "kv_dtype": torch.float32, "device": torch.device("cpu")}
    cache = KVCache(config, 1, **kind, is_stacked=False)
    grow(cache, 700)
    addresses = cache.groups[0].addresses(cache.capacity // KEY_BLOCK)
    assert [address != 0 for address in addresses] == [False] * 3 + [True] * 3


def keys_of(cache: KVCache, layer: int) -> Tensor:
    return cache.save(0, cache.lengths[0])[f"keys.{layer}"]


def test_what_a_row_shares_stays_when_the_other_forgets_it() -> None:
    model, tokens = windowed(), some_tokens(1, 900)
    cache = model.new_cache(2)
    model.forward(tokens[:, :300], cache, rows=slice(0, 1))
    cache.share(0, 1, 300)
    before = [keys_of(cache, layer).clone() for layer in range(len(MIXED))]
    for piece in tokens[:, 300:].split(50, dim=1):
        model.forward(piece, cache, rows=slice(1, 2))
    assert all(torch.equal(keys_of(cache, layer), kept) for layer, kept in enumerate(before))


def test_the_memory_of_a_model_says_what_tokens_after_its_windows_take() -> None:
    narrow, whole = memory_need(config_of()), memory_need(without_windows(config_of()))
    assert whole.kv_bytes_per_token == narrow.kv_bytes_per_token == 2 * 2 * (4 * 28 + 18)
    assert (narrow.window, narrow.kv_bytes_per_later_token) == (200, 2 * 2 * 28)  # of the layer that sees all
    assert (whole.window, whole.kv_bytes_per_later_token) == (0, whole.kv_bytes_per_token)
