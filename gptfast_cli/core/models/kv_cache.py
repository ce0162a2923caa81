"""The KV cache of all layers, and the two layouts of its tensors: floating point and int8.

Rows stand at different positions, and to roll a row back is to shorten its length: the slots past it are
overwritten later. Memory grows with the longest row, in buckets, not with what the model could reach.
"""

import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from gptfast_cli.core.backends import (
    KEY_BLOCK,
    KEY_TILE,
    QUAD,
    FloatCache,
    Int8Cache,
    LayerCache,
)
from gptfast_cli.core.config import ModelConfig
from gptfast_cli.core.device import check_fits


@dataclass(frozen=True, slots=True)
class KVTensor:
    """A tensor of a layer, [rows, kv_heads, slots, *shape].

    n_tokens: that share a slot
    n_slots:  of a part that has always as many, whatever the capacity
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    n_tokens: int = 1
    n_slots: int | None = None

    def slots(self, n_tokens: int) -> int:
        """Slots of a capacity, or those that tokens reach into."""
        return self.n_slots or -(-n_tokens // self.n_tokens)


class KVLayout(Protocol):
    """How the keys and values of a layer are stored."""

    parts: Mapping[str, KVTensor]
    most_tokens: int
    """Maximum number of tokens written to a row in one call."""
    block: int
    """Prefix lengths that are a multiple of this do not depend on later tokens."""

    def layer(self, parts: Mapping[str, Tensor]) -> LayerCache:
        """The cache of a layer."""
        ...

    def bytes_read(self, n_tokens: int) -> int:
        """Bytes of a row of `n_tokens` that a step reads, over all layers."""
        ...


class FloatKVLayout:
    """Keys and values in a floating dtype, as computed."""

    most_tokens = sys.maxsize
    block = 1

    def __init__(self, config: ModelConfig, dtype: torch.dtype) -> None:
        part = KVTensor((config.head_dim,), dtype)
        self.parts: Mapping[str, KVTensor] = {"keys": part, "values": part}
        self._token_bytes = config.kv_bytes_per_token(dtype.itemsize)

    def layer(self, parts: Mapping[str, Tensor]) -> LayerCache:
        return FloatCache(**parts)

    def bytes_read(self, n_tokens: int) -> int:
        return n_tokens * self._token_bytes


class Int8KVLayout:
    """Keys and values as int8 codes and float32 scales (Int8Cache); `dtype` is that of `recent_keys`."""

    most_tokens = block = KEY_BLOCK

    def __init__(self, config: ModelConfig, dtype: torch.dtype) -> None:
        n, quads = config.head_dim, -(-config.head_dim // QUAD)
        self.parts: Mapping[str, KVTensor] = {
            "key_codes": KVTensor((quads, KEY_TILE, QUAD), torch.int8, KEY_TILE),
            "key_scales": KVTensor((n,), torch.float32, KEY_BLOCK),
            "recent_keys": KVTensor((n,), dtype, n_slots=2 * KEY_BLOCK),
            "value_codes": KVTensor((n, QUAD), torch.int8, QUAD),
            "value_scales": KVTensor((), torch.float32),
        }
        self._config, self._itemsize = config, dtype.itemsize

    def layer(self, parts: Mapping[str, Tensor]) -> LayerCache:
        return Int8Cache(**parts)

    def bytes_read(self, n_tokens: int) -> int:
        config, scale = self._config, torch.float32.itemsize
        n_recent = n_tokens % KEY_BLOCK
        blocks = (n_tokens - n_recent) // KEY_BLOCK * (KEY_BLOCK + scale) * config.kv_dim
        values = n_tokens * (config.kv_dim + scale * config.n_kv_heads)
        return config.n_layers * (blocks + n_recent * self._itemsize * config.kv_dim + values)


def kv_layout_of(config: ModelConfig, kv_dtype: torch.dtype, dtype: torch.dtype) -> KVLayout:
    """The layout for keys and values in `kv_dtype`, of a model that computes in `dtype`."""
    return Int8KVLayout(config, dtype) if kv_dtype is torch.int8 else FloatKVLayout(config, kv_dtype)


BUCKET = 256
"""Tokens by which the capacity grows: copying old keys once in so many steps costs less than 1 % of them."""

assert BUCKET % KEY_BLOCK == 0

_LARGE_BYTES = 64 << 20
_SMALLER = "Take fewer rows or tokens: --batch-size, --max-context, --kv-dtype int8"


class KVCache:
    """Keys and values of `n_rows` sequences; `lengths[row]` tokens of each are valid."""

    def __init__(
        self, config: ModelConfig, n_rows: int, *, dtype: torch.dtype, kv_dtype: torch.dtype, device: torch.device
    ) -> None:
        """`kv_dtype` is the one that keys and values are kept in, `dtype` the one that they are computed in."""
        self._layout = kv_layout_of(config, kv_dtype, dtype)
        self._row_shape = (n_rows, config.n_kv_heads)
        self._device, self._n_layers = device, config.n_layers
        self._check_fits(BUCKET)
        self._layers: list[dict[str, Tensor]] = [{} for _ in range(config.n_layers)]  # each part of each layer
        for name, part in self._layout.parts.items():
            shape = (n_rows, config.n_kv_heads, part.slots(0), *part.shape)
            empty = torch.zeros(shape, dtype=part.dtype, device=device)
            for layer in self._layers:
                layer[name] = empty if part.n_slots is None else empty.clone()
        self._open: set[int] = set()  # rows that are being written, or were when something came between
        self.n_rows = n_rows
        self.capacity = 0  # tokens that each row has room for
        self.lengths = [0] * n_rows

    @property
    def most_tokens(self) -> int:
        """Maximum number of tokens written to a row in one call."""
        return self._layout.most_tokens

    @property
    def n_bytes(self) -> int:
        """Bytes of all tensors of the cache."""
        return sum(tensor.nbytes for tensor in self.tensors())

    def bytes_read(self, n_tokens: int) -> int:
        """Bytes of a row of `n_tokens` that a step reads, over all layers."""
        return self._layout.bytes_read(n_tokens)

    @torch.inference_mode()
    def reserve(self, n_tokens: int) -> None:
        """Make room for `n_tokens` in every row, layer by layer; what is there stays."""
        missing = n_tokens - self.capacity
        if missing <= 0:
            return
        grown = -(-missing // BUCKET) * BUCKET
        self._check_fits(grown)
        for name, part in self._layout.parts.items():
            if part.n_slots is not None:
                continue
            for layer in self._layers:
                old = layer[name]
                # zeros, not whatever memory holds: a masked slot has weight 0, and 0 times NaN is NaN
                room = old.new_zeros(*old.shape[:2], part.slots(grown), *old.shape[3:])
                layer[name] = torch.cat([old, room], dim=2) if self.capacity else room
        self.capacity += grown

    def _check_fits(self, n_tokens: int) -> None:
        """Raise OutOfMemoryError if a CPU's memory has no room for so many tokens more: it would end the process."""
        slots = math.prod(self._row_shape) * self._n_layers
        each = (
            part.slots(n_tokens) * math.prod(part.shape) * part.dtype.itemsize for part in self._layout.parts.values()
        )
        n_bytes = slots * sum(each)
        if self._device.type == "cpu" and n_bytes >= _LARGE_BYTES:  # to ask takes longer than to take little
            n_rows, _ = self._row_shape
            check_fits(n_bytes, f"Keys and values of {n_tokens:,} tokens in {n_rows:,} rows", _SMALLER)

    def begin(self, rows: slice, n_tokens: int) -> None:
        """Make room for `n_tokens` in every row; some are being written from now on, until `advance` counts it."""
        self.reserve(n_tokens)
        self._open.update(range(*rows.indices(self.n_rows)))

    def layer(self, index: int, *, rows: slice, n_keys: int) -> LayerCache:
        """A view of one layer: some rows, and room for at least `n_keys` tokens, rounded up to whole key blocks."""
        n_keys = -(-n_keys // KEY_BLOCK) * KEY_BLOCK
        assert n_keys <= self.capacity
        parts = self._layout.parts
        return self._layout.layer(
            {name: tensor[rows, :, : parts[name].slots(n_keys)] for name, tensor in self._layers[index].items()}
        )

    def layers(self, *, rows: slice, n_keys: int) -> list[LayerCache]:
        """Such a view of every layer."""
        return [self.layer(index, rows=rows, n_keys=n_keys) for index in range(len(self._layers))]

    def whole(self) -> list[LayerCache]:
        """All of every layer: the same tensors each time, until the capacity grows."""
        return [self._layout.layer(layer) for layer in self._layers]

    def tensors(self) -> Iterator[Tensor]:
        """Every tensor of the cache."""
        for layer in self._layers:
            yield from layer.values()

    def row(self, row: int, n_tokens: int) -> dict[str, Tensor]:
        """Views of the first `n_tokens` of a row, whole blocks of them, by `keys.N`, `values.N` ... of layer N."""
        assert n_tokens == self.truncated(n_tokens)
        return {
            f"{name}.{index}": layer[name][row, :, : part.slots(n_tokens)]
            for name, part in self._layout.parts.items()
            if part.n_slots is None
            for index, layer in enumerate(self._layers)
        }

    def outline(self, n_tokens: int) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Dtypes and shapes of the tensors of `row`, also past the capacity."""
        return {
            f"{name}.{index}": (part.dtype, (layer[name].shape[1], part.slots(n_tokens), *part.shape))
            for name, part in self._layout.parts.items()
            if part.n_slots is None
            for index, layer in enumerate(self._layers)
        }

    def truncated(self, n_tokens: int) -> int:
        """`n_tokens` rounded down to whole blocks, whose keys and values do not depend on later tokens."""
        return n_tokens // self._layout.block * self._layout.block

    def reusable_length(self, row: int, n_tokens: int) -> int:
        """How many of the first `n_tokens` of a row another text can reuse as its prefix."""
        is_end = n_tokens == self.lengths[row] and row not in self._open
        return n_tokens if is_end else self.truncated(n_tokens)

    def advance(self, rows: slice, n_tokens: int) -> None:
        """Count `n_tokens` just written to each of the rows as valid."""
        self.lengths[rows] = [length + n_tokens for length in self.lengths[rows]]
        self._open.difference_update(range(*rows.indices(self.n_rows)))

    def rollback(self, row: int, length: int) -> None:
        """Keep the first `length` tokens of a row: a `reusable_length`, or up to `most_tokens` fewer."""
        assert 0 <= length <= self.lengths[row]
        self.lengths[row] = length

    @torch.inference_mode()
    def wipe(self, row: int) -> None:
        """Empty a row, and fill it with zeros."""
        for tensor in self.tensors():
            tensor[row].zero_()
        self.lengths[row] = 0
        self._open.discard(row)

    @torch.inference_mode()
    def copy(self, source: int, target: int, n_tokens: int) -> None:
        """Copy the first `n_tokens` of a row, a `reusable_length`, to another."""
        assert n_tokens <= self.lengths[source]
        for name, part in self._layout.parts.items():
            n_slots = part.slots(n_tokens)
            for layer in self._layers:
                layer[name][target, :, :n_slots] = layer[name][source, :, :n_slots]
        self.lengths[target] = n_tokens
        self._open.discard(target)
