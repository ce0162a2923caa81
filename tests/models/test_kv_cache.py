"""The KV cache grows with what is used, keeps rows apart, and forgets by length."""

import pytest
import torch

from gptfast_cli.core.errors import OutOfMemoryError
from gptfast_cli.core.models.kv_cache import BUCKET, KVCache
from gptfast_cli.core.models.transformer import Transformer
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


@pytest.mark.parametrize("kv_dtype", [None, torch.int8])
def test_rows_and_tokens_without_memory_are_refused_before_any_is_taken(kv_dtype: torch.dtype | None) -> None:
    model = ours(random_llama())
    with pytest.raises(
        OutOfMemoryError, match=r"Keys and values of 256 tokens in 1,000,000,000,000 rows take [0-9,.]+ GB"
    ):
        KVCache(model.config, 10**12, dtype=torch.float32, kv_dtype=kv_dtype or torch.float32, device=model.device)
    cache = model.new_cache(2)
    with pytest.raises(OutOfMemoryError, match="tokens in 2 rows") as refused:
        cache.reserve(10**12)
    assert "--max-context" in refused.value.hint
    assert cache.capacity == 0


def test_growing_keeps_what_was_there() -> None:
    model = ours(random_llama())
    cache = filled(model, 2, 5)
    before = cache.layer(1, rows=slice(None), n_keys=5).keys[:, :, :5].clone()
    cache.reserve(BUCKET + 1)
    assert torch.equal(cache.layer(1, rows=slice(None), n_keys=5).keys[:, :, :5], before)


def test_a_copied_row_begins_as_the_other_does_and_is_its_own() -> None:
    cache = filled(ours(random_llama()), 3, 5)
    old = cache.layer(0, rows=slice(None), n_keys=5).values.clone()
    cache.copy(2, 0, 3)
    new = cache.layer(0, rows=slice(None), n_keys=5).values
    assert cache.lengths == [3, 5, 5]
    assert torch.equal(new[0, :, :3], old[2, :, :3])
    assert torch.equal(new[1:], old[1:])
    with torch.inference_mode():
        new[0] = 0
    assert torch.equal(new[2], old[2])


def test_writing_one_row_leaves_the_others() -> None:
    model = ours(random_llama())
    cache = filled(model, 3, 5)
    before = cache.layer(0, rows=slice(None), n_keys=5).keys.clone()
    model.forward(torch.tensor([[7]]), cache, rows=slice(1, 2))
    after = cache.layer(0, rows=slice(None), n_keys=5).keys
    assert torch.equal(after[[0, 2]], before[[0, 2]])
    assert cache.lengths == [5, 6, 5]
