"""The KV cache grows with what is used, keeps rows apart, and forgets by length."""

import torch

from gptfast_cli.core.model.cache import BUCKET, KVCache
from gptfast_cli.core.model.transformer import Transformer
from llama_oracle import ours, random_llama


def filled(model: Transformer, n_rows: int, n_tokens: int) -> KVCache:
    cache = model.new_cache(n_rows)
    model.forward(torch.randint(101, (n_rows, n_tokens)), cache)
    return cache


def test_memory_grows_in_buckets_with_what_is_used() -> None:
    model = ours(random_llama())
    cache = model.new_cache(2)
    assert cache.n_bytes == 0
    for n_tokens, buckets in ((1, 1), (BUCKET, 1), (BUCKET + 1, 2), (3 * BUCKET + 1, 4)):
        cache.reserve(n_tokens)
        per_token = model.config.kv_bytes_per_token(torch.float32.itemsize)
        assert cache.n_bytes == 2 * buckets * BUCKET * per_token


def test_growing_keeps_what_was_there() -> None:
    model = ours(random_llama())
    cache = filled(model, 2, 5)
    before = cache.layer(1, rows=slice(None), n_keys=5).keys[:, :, :5].clone()
    cache.reserve(BUCKET + 1)
    assert torch.equal(cache.layer(1, rows=slice(None), n_keys=5).keys[:, :, :5], before)


def test_selected_rows_are_copies_of_the_old_ones() -> None:
    cache = filled(ours(random_llama()), 3, 5)
    cache.rollback(2, 4)
    old = cache.layer(0, rows=slice(None), n_keys=5)
    cache.select([2, 0, 2])
    new = cache.layer(0, rows=slice(None), n_keys=5)
    assert cache.lengths == [4, 5, 4]
    assert torch.equal(new.values, old.values[[2, 0, 2]])
    new.values[0] = 0
    assert not torch.equal(new.values[2], new.values[0])


def test_writing_one_row_leaves_the_others() -> None:
    model = ours(random_llama())
    cache = filled(model, 3, 5)
    before = cache.layer(0, rows=slice(None), n_keys=5).keys.clone()
    model.forward(torch.tensor([[7]]), cache, rows=slice(1, 2))
    after = cache.layer(0, rows=slice(None), n_keys=5).keys
    assert torch.equal(after[[0, 2]], before[[0, 2]])
    assert cache.lengths == [5, 6, 5]
