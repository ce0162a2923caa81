"""The KV cache: keys and values of the tokens so far, each row of a batch with its own length.

Rows stand at different positions, and to roll a row back is to shorten its length: the slots past it are
overwritten later. Memory grows with the longest row, in buckets, not with what the model could reach.
"""

from collections.abc import Sequence

import torch

from gptfast_cli.core.config import ModelConfig
from gptfast_cli.core.kernels import KEY_BLOCK, LayerCache

BUCKET = 256
"""Tokens by which the capacity grows: copying old keys once in so many steps costs less than 1 % of them."""

assert BUCKET % KEY_BLOCK == 0


class KVCache:
    """Keys and values of `n_rows` sequences; `lengths[row]` tokens of each are valid."""

    def __init__(self, config: ModelConfig, n_rows: int, *, dtype: torch.dtype, device: torch.device) -> None:
        empty = torch.zeros(n_rows, config.n_kv_heads, 0, config.head_dim, dtype=dtype, device=device)
        self._keys = [empty] * config.n_layers  # each [rows, kv_heads, capacity, head_dim]
        self._values = [empty] * config.n_layers
        self.lengths = [0] * n_rows

    @property
    def capacity(self) -> int:
        """Tokens that each row has room for."""
        return self._keys[0].shape[2]

    @property
    def n_bytes(self) -> int:
        """Bytes that the cache takes, used or not."""
        return sum(tensor.nbytes for tensor in (*self._keys, *self._values))

    def reserve(self, n_tokens: int) -> None:
        """Make room for `n_tokens` in every row, layer by layer; what is there stays."""
        missing = n_tokens - self.capacity
        if missing <= 0:
            return
        grown = -(-missing // BUCKET) * BUCKET
        for tensors in (self._keys, self._values):
            for layer, old in enumerate(tensors):
                # zeros, not whatever memory holds: a masked slot has weight 0, and 0 times NaN is NaN
                room = old.new_zeros(*old.shape[:2], grown, old.shape[3])
                tensors[layer] = torch.cat([old, room], dim=2)

    def layer(self, index: int, *, rows: slice, n_keys: int) -> LayerCache:
        """A view of one layer: some rows, and room for at least `n_keys` tokens, rounded up to whole key blocks."""
        n_keys = -(-n_keys // KEY_BLOCK) * KEY_BLOCK
        assert n_keys <= self.capacity
        return LayerCache(self._keys[index][rows, :, :n_keys], self._values[index][rows, :, :n_keys])

    def advance(self, rows: slice, n_tokens: int) -> None:
        """Count `n_tokens` just written to each of the rows as valid."""
        self.lengths[rows] = [length + n_tokens for length in self.lengths[rows]]

    def rollback(self, row: int, length: int) -> None:
        """Forget all but the first `length` tokens of a row."""
        assert 0 <= length <= self.lengths[row]
        self.lengths[row] = length

    def select(self, rows: Sequence[int]) -> None:
        """Become these rows of the old cache, in this order; a row may be named twice."""
        index = torch.tensor(rows, dtype=torch.int64, device=self._keys[0].device)
        for tensors in (self._keys, self._values):
            for layer, old in enumerate(tensors):
                tensors[layer] = old.index_select(0, index)
        self.lengths = [self.lengths[row] for row in rows]
