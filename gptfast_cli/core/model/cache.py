"""The KV cache: keys and values of the tokens so far, each row of a batch with its own length.

Rows stand at different positions, and to roll a row back is to shorten its length: the slots past it are
overwritten later. Memory grows with the longest row, in buckets, not with what the model could reach.
"""

import torch
from torch import Tensor

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
        self.n_rows = n_rows
        self.lengths = [0] * n_rows

    @property
    def capacity(self) -> int:
        """Tokens that each row has room for."""
        return self._keys[0].shape[2]

    @property
    def n_bytes(self) -> int:
        """Bytes that the cache takes, used or not."""
        return sum(tensor.nbytes for tensor in (*self._keys, *self._values))

    @torch.inference_mode()
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

    def layers(self, *, rows: slice, n_keys: int) -> list[LayerCache]:
        """Such a view of every layer."""
        return [self.layer(index, rows=rows, n_keys=n_keys) for index in range(len(self._keys))]

    def row(self, row: int, n_tokens: int) -> dict[str, Tensor]:
        """Views of the first `n_tokens` of a row, each [kv_heads, n_tokens, head_dim], by `keys.N` and `values.N`."""
        kinds = (("keys", self._keys), ("values", self._values))
        return {f"{kind}.{n}": tensor[row, :, :n_tokens] for kind, tensors in kinds for n, tensor in enumerate(tensors)}

    def whole(self) -> list[LayerCache]:
        """All of every layer: the same tensors each time, until the capacity grows."""
        return [LayerCache(keys, values) for keys, values in zip(self._keys, self._values, strict=True)]

    def advance(self, rows: slice, n_tokens: int) -> None:
        """Count `n_tokens` just written to each of the rows as valid."""
        self.lengths[rows] = [length + n_tokens for length in self.lengths[rows]]

    def rollback(self, row: int, length: int) -> None:
        """Forget all but the first `length` tokens of a row."""
        assert 0 <= length <= self.lengths[row]
        self.lengths[row] = length

    @torch.inference_mode()
    def copy(self, source: int, target: int, n_tokens: int) -> None:
        """Make a row equal to the first `n_tokens` of another."""
        assert n_tokens <= self.lengths[source]
        for tensors in (self._keys, self._values):
            for tensor in tensors:
                tensor[target, :, :n_tokens] = tensor[source, :, :n_tokens]
        self.lengths[target] = n_tokens
