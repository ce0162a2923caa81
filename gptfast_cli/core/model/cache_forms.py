"""What a KV cache is made of: keys and values as they are computed, or in int8."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from gptfast_cli.core.config import ModelConfig
from gptfast_cli.core.kernels import KEY_BLOCK, KEY_TILE, QUAD, FloatCache, Int8Cache, LayerCache


@dataclass(frozen=True, slots=True)
class Part:
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


class Form(Protocol):
    """A way to keep keys and values."""

    parts: Mapping[str, Part]
    most_tokens: int
    """That may be written to a row in one go."""
    block: int
    """Tokens by which the beginning of a text stands for itself, whatever came after it."""

    def layer(self, parts: Mapping[str, Tensor]) -> LayerCache:
        """The cache of a layer."""
        ...

    def bytes_read(self, n_tokens: int) -> int:
        """Bytes that a step reads of a row with so many tokens, in all layers."""
        ...


class FloatForm:
    """See Form; in a floating dtype."""

    most_tokens = sys.maxsize
    block = 1

    def __init__(self, config: ModelConfig, dtype: torch.dtype) -> None:
        part = Part((config.head_dim,), dtype)
        self.parts: Mapping[str, Part] = {"keys": part, "values": part}
        self._token_bytes = config.kv_bytes_per_token(dtype.itemsize)

    def layer(self, parts: Mapping[str, Tensor]) -> LayerCache:
        """See Form."""
        return FloatCache(**parts)

    def bytes_read(self, n_tokens: int) -> int:
        """See Form."""
        return n_tokens * self._token_bytes


class Int8Form:
    """See Form and Int8Cache; `dtype` is that of keys which are not codes yet."""

    most_tokens = block = KEY_BLOCK

    def __init__(self, config: ModelConfig, dtype: torch.dtype) -> None:
        n, quads = config.head_dim, -(-config.head_dim // QUAD)
        self.parts: Mapping[str, Part] = {
            "key_codes": Part((quads, KEY_TILE, QUAD), torch.int8, KEY_TILE),
            "key_scales": Part((n,), torch.float32, KEY_BLOCK),
            "recent_keys": Part((n,), dtype, n_slots=2 * KEY_BLOCK),
            "value_codes": Part((n, QUAD), torch.int8, QUAD),
            "value_scales": Part((), torch.float32),
        }
        self._config, self._itemsize = config, dtype.itemsize

    def layer(self, parts: Mapping[str, Tensor]) -> LayerCache:
        """See Form."""
        return Int8Cache(**parts)

    def bytes_read(self, n_tokens: int) -> int:
        """See Form."""
        config, scale = self._config, torch.float32.itemsize
        n_recent = n_tokens % KEY_BLOCK
        blocks = (n_tokens - n_recent) // KEY_BLOCK * (KEY_BLOCK + scale) * config.kv_dim
        values = n_tokens * (config.kv_dim + scale * config.n_kv_heads)
        return config.n_layers * (blocks + n_recent * self._itemsize * config.kv_dim + values)


def form_of(config: ModelConfig, kv_dtype: torch.dtype, dtype: torch.dtype) -> Form:
    """The form that keeps keys and values in `kv_dtype`, of a model that computes in `dtype`."""
    return Int8Form(config, dtype) if kv_dtype is torch.int8 else FloatForm(config, kv_dtype)
