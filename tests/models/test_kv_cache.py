"""The KV cache: rows take blocks as they need them, share equal beginnings, stay apart, and forget by length."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gptfast_cli.core.backends.base import KEY_BLOCK
from gptfast_cli.core.backends.layer_cache import FloatCache, gathered
from gptfast_cli.core.errors import OutOfMemoryError
from gptfast_cli.core.models.kv_cache import KVCache
from gptfast_cli.core.models.transformer import Transformer
from llama_oracle import ours, random_llama

pytestmark = pytest.mark.usefixtures("no_gradients")

ALL = slice(None)


@pytest.fixture(scope="module")
def model() -> Transformer:
    return ours(random_llama())


def filled(model: Transformer, n_rows: int, n_tokens: int) -> KVCache:
    cache = model.new_cache(n_rows)
    model.forward(torch.randint(101, (n_rows, n_tokens)), cache)
    return cache


def keys(cache: KVCache, n_tokens: int) -> Tensor:
    """The first keys of all rows in the last layer: [rows, kv_heads, n_tokens, head_dim]."""
    layer = cache.layers(ALL, [0] * cache.n_rows, n_tokens)[-1]
    assert isinstance(layer, FloatCache)
    return gathered(layer.keys, layer.table)[:, :, :n_tokens]


def block_bytes(model: Transformer) -> int:
    return KEY_BLOCK * model.config.kv_bytes_per_token(torch.float32.itemsize)


def test_a_row_takes_the_blocks_that_it_needs(model: Transformer) -> None:
    cache = model.new_cache(2)
    assert cache.n_bytes == 0
    for row, n_tokens, n_taken in ((0, 1, 1), (0, KEY_BLOCK, 1), (1, 3 * KEY_BLOCK + 1, 5), (0, KEY_BLOCK + 1, 6)):
        cache.begin(slice(row, row + 1), [n_tokens])
        assert cache.n_bytes == n_taken * block_bytes(model)
    assert cache.capacity == 4 * KEY_BLOCK


def test_what_a_row_gives_back_is_taken_again(model: Transformer) -> None:
    cache = filled(model, 2, 3 * KEY_BLOCK)
    before = cache.n_bytes
    cache.rollback(0, KEY_BLOCK + 1)
    cache.begin(slice(1, 2), [1])
    assert cache.n_bytes == before == 6 * block_bytes(model)
    cache.begin(slice(1, 2), [KEY_BLOCK + 1])
    assert cache.n_bytes == 7 * block_bytes(model)


@pytest.mark.parametrize("kv_dtype", [None, torch.int8])
def test_rows_and_tokens_without_memory_are_refused_before_any_is_taken(
    model: Transformer, kv_dtype: torch.dtype | None
) -> None:
    with pytest.raises(
        OutOfMemoryError, match=r"Keys and values of 128 tokens in 1,000,000,000,000 rows take [0-9,.]+ GB"
    ):
        KVCache(model.config, 10**12, dtype=torch.float32, kv_dtype=kv_dtype or torch.float32, device=model.device)
    cache = model.new_cache(2)
    for refused in (lambda: cache.begin(ALL, [1, 10**12]), lambda: cache.reserve(10**12, 1)):
        with pytest.raises(OutOfMemoryError, match="Keys and values of 1,000,000,000,000 tokens in 2 rows") as error:
            refused()
        assert "--max-context" in error.value.hint
    assert cache.capacity == cache.n_bytes == 0


@pytest.mark.parametrize("is_stacked", [True, False])
def test_growing_keeps_what_was_there(model: Transformer, is_stacked: bool) -> None:
    kind = {"dtype": torch.float32, "kv_dtype": torch.float32, "device": model.device}
    cache = KVCache(model.config, 2, **kind, is_stacked=is_stacked)
    cache.begin(ALL, [KEY_BLOCK] * 2)
    for number, tensor in enumerate(cache.tensors()):
        tensor.fill_(number + 1)
    cache.advance(ALL, KEY_BLOCK)
    saved, addresses = cache.save(1, KEY_BLOCK), [tensor.data_ptr() for tensor in cache.tensors()]
    cache.begin(ALL, [9 * KEY_BLOCK] * 2)
    again = cache.save(1, KEY_BLOCK)
    assert all(torch.equal(saved[name], again[name]) for name in saved)
    if not is_stacked:
        assert [tensor.data_ptr() for tensor in cache.tensors()][: len(addresses)] == addresses


def test_memory_that_was_reserved_is_all_that_is_needed(model: Transformer) -> None:
    cache = model.new_cache(2)
    cache.reserve(300, 1)
    tensors = [tensor.data_ptr() for tensor in cache.tensors()]
    model.forward(torch.randint(101, (2, 300)), cache)
    assert [tensor.data_ptr() for tensor in cache.tensors()] == tensors
    assert cache.capacity == 3 * KEY_BLOCK


@pytest.mark.parametrize("n_shared", [3, KEY_BLOCK, KEY_BLOCK + 3])
def test_a_row_that_begins_as_another_shares_its_blocks_until_it_writes(model: Transformer, n_shared: int) -> None:
    cache = filled(model, 3, KEY_BLOCK + 5)
    before, n_bytes = keys(cache, KEY_BLOCK + 5).clone(), cache.n_bytes
    cache.share(2, 0, n_shared)
    assert cache.lengths == [n_shared, KEY_BLOCK + 5, KEY_BLOCK + 5]
    assert torch.equal(keys(cache, n_shared)[0], before[2, :, :n_shared])
    for row in (0, 2):
        model.forward(torch.tensor([[7]]), cache, rows=slice(row, row + 1))
    assert cache.n_bytes == n_bytes  # of the blocks that row 0 had before
    after = keys(cache, KEY_BLOCK + 5)
    assert torch.equal(after[1:], before[1:])
    assert torch.equal(after[0, :, :n_shared], before[2, :, :n_shared])
    assert cache.lengths == [n_shared + 1, KEY_BLOCK + 5, KEY_BLOCK + 6]


def test_what_was_no_number_in_a_shared_block_does_not_go_along(model: Transformer) -> None:
    cache = filled(model, 2, 9)
    for tensor in cache.tensors():
        tensor[0, :, 5:] = torch.nan
    cache.share(0, 1, 5)
    model.forward(torch.tensor([[7]]), cache, rows=slice(1, 2))
    assert keys(cache, 9)[1].isfinite().all()


def test_rows_exchange_all_that_they_have(model: Transformer) -> None:
    cache = filled(model, 3, 5)
    model.forward(torch.tensor([[7]]), cache, rows=slice(2, 3))
    before = keys(cache, 6).clone()
    cache.swap(0, 2)
    assert cache.lengths == [6, 5, 5]
    assert torch.equal(keys(cache, 6), before[[2, 1, 0]])


def test_writing_one_row_leaves_the_others(model: Transformer) -> None:
    cache = filled(model, 3, 5)
    before = keys(cache, 5).clone()
    model.forward(torch.tensor([[7]]), cache, rows=slice(1, 2))
    assert torch.equal(keys(cache, 5)[[0, 2]], before[[0, 2]])
    assert cache.lengths == [5, 6, 5]


class Texts:
    """A cache of three rows, in which each token has a number of its own, and the texts that its rows should hold."""

    def __init__(self, *, is_stacked: bool) -> None:
        kind = {"dtype": torch.float32, "kv_dtype": torch.float32, "device": torch.device("cpu")}
        self.cache = KVCache(ours(random_llama(num_hidden_layers=1)).config, 3, **kind, is_stacked=is_stacked)
        self.texts: list[list[int]] = [[], [], []]
        self._n_written = 0

    def write(self, row: int, _: int, n: int) -> None:
        cache, text = self.cache, self.texts[row]
        cache.begin(slice(row, row + 1), [n])
        for _ in range(n):
            block, slot = divmod(len(text), KEY_BLOCK)
            self._n_written += 1
            cache.groups[0].pool.layers(cache.groups[0].rows[row][block])[0]["values"][:, slot] = self._n_written
            text.append(self._n_written)
        cache.advance(slice(row, row + 1), n)

    def share(self, row: int, other: int, n: int) -> None:
        if row != other:
            n_shared = n % (len(self.texts[row]) + 1)
            self.cache.share(row, other, n_shared)
            self.texts[other] = self.texts[row][:n_shared]

    def swap(self, row: int, other: int, _: int) -> None:
        if row != other:
            self.cache.swap(row, other)
            self.texts[row], self.texts[other] = self.texts[other], self.texts[row]

    def roll_back(self, row: int, _: int, n: int) -> None:
        del self.texts[row][n % (len(self.texts[row]) + 1) :]
        self.cache.rollback(row, len(self.texts[row]))

    def wipe(self, row: int, *_: int) -> None:
        self.cache.wipe(row)
        self.texts[row] = []


ROWS = st.integers(0, 2)
STEPS = st.tuples(
    st.sampled_from([Texts.write, Texts.share, Texts.swap, Texts.roll_back, Texts.wipe]),
    ROWS,
    ROWS,
    st.integers(1, 3 * KEY_BLOCK),
)


@given(steps=st.lists(STEPS, max_size=20), is_stacked=st.booleans())
def test_rows_hold_their_own_texts_whatever_was_done(steps: list, is_stacked: bool) -> None:
    held = Texts(is_stacked=is_stacked)
    cache = held.cache
    for step, *arguments in steps:
        step(held, *arguments)
        for row, text in enumerate(held.texts):
            values = cache.save(row, len(text))["values.0"]
            assert torch.equal(values, torch.tensor(text).float().view(1, -1, 1).expand_as(values))
    (group,) = cache.groups
    n_owned = len({block for table in group.rows for block in table})
    assert n_owned + len(group.pool._free) == group.pool.n_used
