"""The few fused operations that a decoder layer is made of, as every backend offers them.

A layer is five operations, or seven; embedding and head stand around them:

    project_qkv     norm, query/key/value projection, QK-norm, RoPE, cache write
    attend          attention of the queries over the cache
    project_output  output projection plus residual
    gate_up         norm, gate and up projection, activation
    down            down projection plus residual
    add             residual plus what a projection gave, normalized or scaled; it had no residual then

`reference` states each in plain PyTorch and is the oracle for every other backend.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.autograd import _profiler_enabled  # type: ignore[attr-defined]  # PyTorch has no public word for it

from gptfast_cli.core.config import Activation, AttentionSpec
from gptfast_cli.core.schemes import Weight

KEY_BLOCK = 128
"""Tokens of a block of the KV cache; so many keys share the scales of an int8 cache."""

KEY_TILE, QUAD = 16, 4
"""Keys, and bytes of each, that stand together in an int8 cache, as kernels read them."""


@dataclass(frozen=True, slots=True)
class Norm:
    """Root-mean-square normalization (Zhang & Sennrich 2019, arXiv:1910.07467).

    weight:  [n], for vectors of n elements
    offset:  added to the weight
    average: over the ranks, where each has a part of the vectors
    """

    weight: Weight
    eps: float
    offset: float = 0.0
    average: Callable[[Tensor], Tensor] | None = None


@dataclass(frozen=True, slots=True)
class AttentionNorms:
    """The norms of attention that a layer has: of its input, and of queries and keys before they are rotated."""

    before: Norm | None
    q: Norm | None = None
    k: Norm | None = None


@dataclass(frozen=True, slots=True)
class Linear:
    """An affine map, x W^T + b; most models have no b."""

    weight: Weight  # [out_features, in_features]
    bias: Weight | None = None  # [out_features]

    @property
    def n_bytes(self) -> int:
        """Bytes of the weight and the bias."""
        return self.weight.n_bytes + (0 if self.bias is None else self.bias.n_bytes)


@dataclass(frozen=True, slots=True)
class RopePositions:
    """Where the tokens of a step stand in their sequences, and the rotation that belongs there.

    positions: [batch, time] int64; a row's own, so the rows of a batch may stand at different places
    cos, sin:  [batch, time, rotary_dim / 2] float32; None: nothing is rotated
    """

    positions: Tensor
    cos: Tensor | None
    sin: Tensor | None


class LayerCache(Protocol):
    """Keys and values of one layer for the rows of a batch, written in place; `n_keys` is a multiple of KEY_BLOCK."""

    def key_positions(self) -> Tensor:
        """Positions of all keys: [n_keys], or [batch, 1, n_keys] where the rows begin at different ones."""
        ...

    def write(self, k: Tensor, v: Tensor, positions: Tensor) -> None:
        """Write k and v [batch, time, kv_heads, head_dim] at positions [batch, time]."""
        ...

    def scores(self, q: Tensor, positions: Tensor) -> Tensor:
        """Products of q [batch, kv_heads, group * time, head_dim], at positions [batch, time], with all keys.

        Returns [batch, kv_heads, group * time, n_keys]; those of keys after a query's position mean nothing.
        """
        ...

    def read_values(self, dtype: torch.dtype) -> Tensor:
        """All values, [batch, kv_heads, n_keys, head_dim]."""
        ...


class Backend(Protocol):
    """The operations of a layer; x is [batch, time, dim] in the compute dtype throughout."""

    def embed(self, tokens: Tensor, embedding: Weight, dtype: torch.dtype) -> Tensor:
        """Embedding rows of tokens [batch, time] int64: x."""
        ...

    def project_qkv(
        self,
        x: Tensor,
        qkv: Linear,
        *,
        norms: AttentionNorms,
        place: RopePositions,
        cache: LayerCache,
        spec: AttentionSpec,
    ) -> Tensor:
        """Write the rotated keys and the values of x into the cache; return rotated queries.

        Returns [batch, time, n_heads, head_dim].
        """
        ...

    def attend(self, q: Tensor, cache: LayerCache, *, place: RopePositions, spec: AttentionSpec) -> Tensor:
        """Causal attention: each query sees the keys at its own position and before, as far as its window reaches.

        Returns [batch, time, q_dim].
        """
        ...

    def project_output(self, heads: Tensor, output: Linear, *, residual: Tensor | None) -> Tensor:
        """The projection of heads [batch, time, q_dim], plus the residual if there is one: x."""
        ...

    def gate_up(self, x: Tensor, gate_up: Linear, *, norm: Norm | None, activation: Activation) -> Tensor:
        """activation(gate) * up of the normalized x, [batch, time, ffn_dim]."""
        ...

    def down(self, hidden: Tensor, down: Linear, *, residual: Tensor | None) -> Tensor:
        """The projection of hidden [batch, time, ffn_dim], plus the residual if there is one: x."""
        ...

    def add(self, x: Tensor, y: Tensor, *, norm: Norm | None, scale: float) -> Tensor:
        """x plus `scale` times the normalized y, both [batch, time, dim]."""
        ...

    def head(self, x: Tensor, head: Linear, *, norm: Norm) -> Tensor:
        """Logits of x [..., dim]: [..., vocab_size] float32."""
        ...


def phase(name: str) -> AbstractContextManager[object]:
    """Name the work of a block in a profiler trace; without a running profiler it does nothing.

    Inside a compiled function it does nothing either: names would be barriers to fusion.
    """
    if torch.compiler.is_compiling() or not _profiler_enabled():
        return nullcontext()
    return torch.profiler.record_function(name)
