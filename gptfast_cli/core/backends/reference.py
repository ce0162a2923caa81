"""The operations of a layer in plain PyTorch: the oracle for every other backend, and the one that runs anywhere.

In float32 on a CPU the result of a token is the same to the last bit whatever else is in the batch and in the
call, so that batching, chunked prefill and speculation agree exactly with decoding alone. Three habits make it so:
matrix products get a whole number of row tiles, because the vendor's kernel for a ragged edge adds up in another
order; values are summed over key blocks of one size, whose masked tail adds exact zeros; and the activation is
spelled out in operations that round alike wherever in a tensor an element stands.
(Products under 12 columns wide escape the first habit; no head or layer of a real model is that narrow.)

An int8 cache takes a byte per key and value: code = round(127 x / largest), value = code * largest / 127. Keys have a
scale per channel of a block, values one per token: a few channels of all keys are much larger than the others, those
of values are not (KIVI, Liu et al. 2024, arXiv:2402.02750). A channel's scale is known once its block of KEY_BLOCK
tokens is complete, so

    a query at position t reads the keys of its own block as they were computed, those of earlier blocks as codes,

which depends on t alone, not on how a text is cut into calls, nor on rejected drafts. The last two blocks of keys are
also kept as computed: a call writes at most KEY_BLOCK tokens, and a row can be rolled back by as many.
"""

from collections.abc import Callable, Mapping
from functools import reduce

import torch
import torch.nn.functional as F  # noqa: N812  (the name that everyone knows)
from torch import Tensor

from gptfast_cli.core.backends import (
    KEY_BLOCK,
    KEY_TILE,
    QUAD,
    AttentionSpec,
    FloatCache,
    Int8Cache,
    LayerCache,
    Linear,
    Norm,
    RopePositions,
)
from gptfast_cli.core.schemes import Scheme, Weight, schemes

ROW_TILE = 16
_SMALLEST = 1e-30  # lower bound of the largest element; smaller elements become 0
SCHEMES: Mapping[str, Scheme] = dict(schemes)  # a dict: torch.compile cannot trace the import of a plug


class Reference:
    """The Backend that runs on every device that PyTorch has."""

    def __init__(self, product: Callable[[Tensor, Linear], Tensor] | None = None) -> None:
        """`product` replaces `linear` for every matrix product of a model: calibration records the inputs there."""
        self._product = linear if product is None else product

    def embed(self, tokens: Tensor, embedding: Weight, dtype: torch.dtype) -> Tensor:
        return SCHEMES[embedding.scheme].rows(embedding, tokens, dtype)

    def project_qkv(
        self, x: Tensor, qkv: Linear, *, norm: Norm, place: RopePositions, cache: LayerCache, spec: AttentionSpec
    ) -> Tensor:
        # [batch, time, all heads, head_dim]
        heads = torch.unflatten(self._product(rms_norm(x, norm), qkv), -1, (-1, spec.head_dim))
        q, k, v = heads.split_with_sizes([spec.n_heads, spec.n_kv_heads, spec.n_kv_heads], dim=2)
        write(cache, rotate(k, place), v, place.positions)
        return rotate(q, place)

    def attend(self, q: Tensor, cache: LayerCache, *, place: RopePositions, spec: AttentionSpec) -> Tensor:
        # query heads that share a key head become rows of one product: nothing of the cache is repeated
        q = torch.unflatten(q, 2, (spec.n_kv_heads, -1))  # [batch, time, kv_heads, group, head_dim]
        q = q.permute(0, 2, 3, 1, 4)
        group, time = q.shape[2:4]
        values = gathered(cache.values, cache.table) if isinstance(cache, FloatCache) else coded_values(cache, q.dtype)
        keys = torch.arange(values.shape[2], device=q.device)
        scores = torch.unflatten(score(q.flatten(2, 3), cache, keys, place.positions), 2, (group, time))
        future = keys > place.positions.unsqueeze(-1)  # [batch, time, n_keys]
        scores = (scores.float() * spec.head_dim**-0.5).masked_fill(future[:, None, None], -torch.inf)
        weights = scores.softmax(dim=-1).to(q.dtype).flatten(2, 3)
        heads = torch.unflatten(weighted_sum(weights, values), 2, (group, time))
        return heads.permute(0, 3, 1, 2, 4).flatten(2)

    def project_output(self, heads: Tensor, output: Linear, *, residual: Tensor) -> Tensor:
        return residual + self._product(heads, output)

    def gate_up(self, x: Tensor, gate_up: Linear, *, norm: Norm) -> Tensor:
        gate, up = self._product(rms_norm(x, norm), gate_up).chunk(2, dim=-1)
        return silu(gate) * up

    def down(self, hidden: Tensor, down: Linear, *, residual: Tensor) -> Tensor:
        return residual + self._product(hidden, down)

    def head(self, x: Tensor, head: Linear, *, norm: Norm) -> Tensor:
        return self._product(rms_norm(x, norm), head).float()


def write(cache: LayerCache, k: Tensor, v: Tensor, positions: Tensor) -> None:
    """Write k and v [batch, time, kv_heads, head_dim] at positions [batch, time]."""
    if isinstance(cache, Int8Cache):
        write_int8(cache, k, v, positions)
        return
    blocks, slots = blocks_at(cache.table, positions), positions % KEY_BLOCK
    cache.keys[blocks, :, slots] = k
    cache.values[blocks, :, slots] = v


def blocks_at(table: Tensor, positions: Tensor) -> Tensor:
    """The block of each position [batch, time] of the rows of a table [batch, blocks]: [batch, time]."""
    return table.gather(1, positions // KEY_BLOCK)


def gathered(part: Tensor, table: Tensor) -> Tensor:
    """A part of the cache [blocks, kv_heads, slots, ...] row by row: [batch, kv_heads, all slots of a row, ...]."""
    return part.transpose(0, 1)[:, table].transpose(0, 1).flatten(2, 3)


def score(q: Tensor, cache: LayerCache, keys: Tensor, positions: Tensor) -> Tensor:
    """Products of q [batch, kv_heads, group * time, head_dim], at positions [batch, time], with keys 0 to n_keys.

    Returns [batch, kv_heads, group * time, n_keys].
    """
    if isinstance(cache, FloatCache):
        return matmul(q, gathered(cache.keys, cache.table).transpose(-1, -2))
    coded = matmul(q, coded_keys(cache, q.dtype).transpose(-1, -2))
    recent = matmul(q, cache.recent_keys.transpose(-1, -2))[..., keys % (2 * KEY_BLOCK)]
    own = keys // KEY_BLOCK == (positions // KEY_BLOCK).unsqueeze(-1)  # [batch, time, n_keys]
    return torch.where(own.repeat(1, q.shape[2] // positions.shape[1], 1).unsqueeze(1), recent, coded)


def silu(x: Tensor) -> Tensor:
    """x / (1 + exp(-x)), elementwise."""
    # PyTorch's own rounds the ragged end of a tensor differently; its exp does not
    return x / (1 + torch.exp(-x)) if is_exact(x) else F.silu(x)


def rms_norm(x: Tensor, norm: Norm) -> Tensor:
    """x over its root mean square along the last axis, times the weight; the statistics are float32."""
    wide = x.float()
    scaled = wide * torch.rsqrt((wide * wide).mean(dim=-1, keepdim=True) + norm.eps)
    return scaled.to(x.dtype) * SCHEMES[norm.weight.scheme].dense(norm.weight, x.dtype)


def linear(x: Tensor, layer: Linear) -> Tensor:
    """x W^T + b for x [..., in_features]: [..., out_features]."""
    weight = SCHEMES[layer.weight.scheme].dense(layer.weight, x.dtype)
    y = matmul(x.reshape(-1, x.shape[-1]), weight.t()).view(*x.shape[:-1], weight.shape[0])
    if layer.bias is None:
        return y
    return y + SCHEMES[layer.bias.scheme].dense(layer.bias, x.dtype)


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """a [..., rows, k] times b [..., k, n]; where it is exact, a row's result does not depend on the other rows."""
    rows = a.shape[-2]
    if is_exact(a) and rows % ROW_TILE:
        return (F.pad(a, (0, 0, 0, -rows % ROW_TILE)) @ b)[..., :rows, :]
    return a @ b


def weighted_sum(weights: Tensor, values: Tensor) -> Tensor:
    """weights [..., rows, n_keys] times values [..., n_keys, d]; where it is exact, added up key block by key block.

    One product would do, but the vendor's kernel cuts a long sum into equal parts, so elsewhere for every length.
    """
    if not is_exact(weights):
        return weights @ values
    blocks = zip(torch.split(weights, KEY_BLOCK, dim=-1), torch.split(values, KEY_BLOCK, dim=-2), strict=True)
    return reduce(torch.add, (matmul(*block) for block in blocks))


def is_exact(x: Tensor) -> bool:
    """Whether results for x are batch-invariant, bit for bit."""
    return x.dtype is torch.float32 and x.device.type == "cpu" and not torch.compiler.is_compiling()


def rotate(x: Tensor, place: RopePositions) -> Tensor:
    """Rotate the pairs (x_i, x_{i + head_dim / 2}) of x [batch, time, heads, head_dim] (RoPE)."""
    cos, sin = place.cos.unsqueeze(2), place.sin.unsqueeze(2)  # the same for all heads
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)


def write_int8(cache: Int8Cache, k: Tensor, v: Tensor, positions: Tensor) -> None:
    """Write k and v [batch, time, kv_heads, head_dim] at positions [batch, time]; time is at most KEY_BLOCK."""
    rows = torch.arange(len(k), device=k.device).unsqueeze(-1)  # [batch, 1], against positions [batch, time]
    cache.recent_keys[rows, :, positions % (2 * KEY_BLOCK)] = k
    # the blocks that are written to; codes of an incomplete block are not read
    ends = torch.stack([positions[:, 0], positions[:, -1]], dim=1)
    recent = torch.unflatten(cache.recent_keys, 2, (2, KEY_BLOCK))
    keys = recent[rows, :, ends // KEY_BLOCK % 2]  # [batch, 2, kv_heads, KEY_BLOCK, head_dim]
    codes, scales = quantised(keys, dim=-2)
    tiles = torch.unflatten(F.pad(codes, (0, -codes.shape[-1] % QUAD)), -1, (-1, QUAD))
    blocks = blocks_at(cache.table, ends)
    cache.key_codes[blocks] = torch.unflatten(tiles, 3, (-1, KEY_TILE)).transpose(4, 5)
    cache.key_scales[blocks] = scales.unsqueeze(-2)
    codes, scales = quantised(v, dim=-1)
    blocks, slots = blocks_at(cache.table, positions), positions % KEY_BLOCK
    cache.value_codes[blocks, :, slots // QUAD, :, slots % QUAD] = codes
    cache.value_scales[blocks, :, slots] = scales


def quantised(x: Tensor, *, dim: int) -> tuple[Tensor, Tensor]:
    """int8 codes of x, and float32 scales, one for all elements along `dim`."""
    x = x.float()
    largest = x.abs().amax(dim, keepdim=True).clamp(min=_SMALLEST)
    steps = torch.full_like(largest, 127) / largest  # 127 / tensor is rounded twice
    return torch.round(x * steps).to(torch.int8), (largest / 127).squeeze(dim)


def coded_keys(cache: Int8Cache, dtype: torch.dtype) -> Tensor:
    """Dequantised keys, [batch, kv_heads, n_keys, head_dim]."""
    scales = gathered(cache.key_scales, cache.table)  # [batch, kv_heads, blocks, head_dim]
    codes = gathered(cache.key_codes, cache.table).transpose(3, 4).flatten(4)[..., : scales.shape[-1]]
    blocks = torch.unflatten(codes.flatten(2, 3).float(), 2, (-1, KEY_BLOCK))
    return (blocks * scales.unsqueeze(-2)).flatten(2, 3).to(dtype)


def coded_values(cache: Int8Cache, dtype: torch.dtype) -> Tensor:
    """Dequantised values, [batch, kv_heads, n_keys, head_dim]."""
    codes = gathered(cache.value_codes, cache.table).transpose(3, 4).flatten(2, 3)
    return (codes.float() * gathered(cache.value_scales, cache.table).unsqueeze(-1)).to(dtype)
