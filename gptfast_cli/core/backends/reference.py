"""The operations of a layer in plain PyTorch: the oracle for every other backend, and the one that runs anywhere.

In float32 on a CPU the result of a token is the same to the last bit whatever else is in the batch and in the
call, so that batching, chunked prefill and speculation agree exactly with decoding alone. Three habits make it so:
matrix products get a whole number of row tiles, because the vendor's kernel for a ragged edge adds up in another
order; values are summed over key blocks of one size, whose masked tail adds exact zeros; and the activation is
spelled out in operations that round alike wherever in a tensor an element stands.
(Products under 12 columns wide escape the first habit; no head or layer of a real model is that narrow.)
"""

import math
from collections.abc import Callable, Mapping
from functools import reduce

import torch
import torch.nn.functional as F  # noqa: N812  (the name that everyone knows)
from torch import Tensor

from gptfast_cli.core.backends.base import KEY_BLOCK, AttentionNorms, LayerCache, Linear, Norm, RopePositions
from gptfast_cli.core.config import Activation, AttentionSpec, QKNorm, QueryScaling
from gptfast_cli.core.schemes import Scheme, Weight, schemes

ROW_TILE = 16
SCHEMES: Mapping[str, Scheme] = dict(schemes)  # a dict: torch.compile cannot trace the import of a plug


class Reference:
    """The Backend that runs on every device that PyTorch has."""

    def __init__(self, product: Callable[[Tensor, Linear], Tensor] | None = None) -> None:
        """`product` replaces `linear` for every matrix product of a model: calibration records the inputs there."""
        self._product = linear if product is None else product

    def embed(self, tokens: Tensor, embedding: Weight, dtype: torch.dtype) -> Tensor:
        return SCHEMES[embedding.scheme].rows(embedding, tokens, dtype)

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
        projected = self._product(normalized(x, norms.before), qkv)
        q, k, v = projected.split_with_sizes([spec.q_dim, spec.kv_dim, spec.kv_dim], dim=-1)
        if spec.qk_norm is QKNorm.WIDTH:
            q, k = normalized(q, norms.q), normalized(k, norms.k)
        q, k, v = (torch.unflatten(part, -1, (-1, spec.head_dim)) for part in (q, k, v))
        if spec.qk_norm is QKNorm.HEAD:
            q, k = normalized(q, norms.q), normalized(k, norms.k)
        cache.write(rotate(k, place), v, place.positions)
        q = rotate(q, place)
        if spec.query_scaling is None:
            return q
        return q * query_factors(place.positions, spec.query_scaling).to(q.dtype)[..., None, None]

    def attend(self, q: Tensor, cache: LayerCache, *, place: RopePositions, spec: AttentionSpec) -> Tensor:
        # query heads that share a key head become rows of one product: nothing of the cache is repeated
        q = torch.unflatten(q, 2, (spec.n_kv_heads, -1))  # [batch, time, kv_heads, group, head_dim]
        q = q.permute(0, 2, 3, 1, 4)
        group, time = q.shape[2:4]
        scores = torch.unflatten(cache.scores(q.flatten(2, 3), place.positions), 2, (group, time))
        keys = cache.key_positions()
        at = place.positions.unsqueeze(-1)
        unseen = keys > at  # [batch, time, n_keys]
        if spec.window is not None:
            unseen |= keys <= at - spec.window
        scores = scores.float() * spec.score_scale
        if spec.softcap is not None:
            scores = softcapped(scores, spec.softcap)
        scores = scores.masked_fill(unseen[:, None, None], -torch.inf)
        weights = scores.softmax(dim=-1).to(q.dtype).flatten(2, 3)
        heads = torch.unflatten(weighted_sum(weights, cache.read_values(q.dtype)), 2, (group, time))
        return heads.permute(0, 3, 1, 2, 4).flatten(2)

    def project_output(self, heads: Tensor, output: Linear, *, residual: Tensor | None) -> Tensor:
        return self._projected(heads, output, residual)

    def gate_up(self, x: Tensor, gate_up: Linear, *, norm: Norm | None, activation: Activation) -> Tensor:
        gate, up = self._product(normalized(x, norm), gate_up).chunk(2, dim=-1)
        return _ACTIVATIONS[activation](gate) * up

    def down(self, hidden: Tensor, down: Linear, *, residual: Tensor | None) -> Tensor:
        return self._projected(hidden, down, residual)

    def add(self, x: Tensor, y: Tensor, *, norm: Norm | None, scale: float) -> Tensor:
        return x + normalized(y, norm) * scale

    def _projected(self, x: Tensor, layer: Linear, residual: Tensor | None) -> Tensor:
        y = self._product(x, layer)
        return y if residual is None else residual + y

    def head(self, x: Tensor, head: Linear, *, norm: Norm) -> Tensor:
        return self._product(rms_norm(x, norm), head).float()


def silu(x: Tensor) -> Tensor:
    """x / (1 + exp(-x)), elementwise."""
    # PyTorch's own rounds the ragged end of a tensor differently; its exp does not
    return x / (1 + torch.exp(-x)) if is_exact(x) else F.silu(x)


def gelu_tanh(x: Tensor) -> Tensor:
    """x (1 + tanh(u)) / 2 with u = sqrt(2 / pi) (x + 0.044715 x^3), elementwise."""
    if not is_exact(x):
        return F.gelu(x, approximate="tanh")
    return x / (1 + torch.exp(-2 * math.sqrt(2 / math.pi) * (x + 0.044715 * (x * x * x))))


def softcapped(x: Tensor, cap: float) -> Tensor:
    """cap * tanh(x / cap), elementwise."""
    if not is_exact(x):
        return cap * torch.tanh(x / cap)
    e = torch.exp(x.abs() * (-2 / cap))
    return torch.copysign(cap * ((1 - e) / (1 + e)), x)


_ACTIVATIONS = {Activation.SILU: silu, Activation.GELU_TANH: gelu_tanh}


def normalized(x: Tensor, norm: Norm | None) -> Tensor:
    """x under a norm, where there is one."""
    return x if norm is None else rms_norm(x, norm)


def rms_norm(x: Tensor, norm: Norm) -> Tensor:
    """x over its root mean square along the last axis, times the weight; the statistics are float32."""
    wide = x.float()
    squares = (wide * wide).mean(dim=-1, keepdim=True)
    if norm.average is not None:
        squares = norm.average(squares)
    scaled = wide * torch.rsqrt(squares + norm.eps)
    scheme = SCHEMES[norm.weight.scheme]
    if norm.offset:
        return (scaled * (scheme.dense(norm.weight, torch.float32) + norm.offset)).to(x.dtype)
    return scaled.to(x.dtype) * scheme.dense(norm.weight, x.dtype)


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


def query_factors(positions: Tensor, scaling: QueryScaling) -> Tensor:
    """Factors of the queries at positions [batch, time], float32."""
    spans = torch.div(positions, scaling.original_context, rounding_mode="floor")
    return (1 + scaling.beta * torch.log1p(spans.double())).float()


def is_exact(x: Tensor) -> bool:
    """Whether results for x are batch-invariant, bit for bit."""
    return x.dtype is torch.float32 and x.device.type == "cpu" and not torch.compiler.is_compiling()


def rotate(x: Tensor, place: RopePositions) -> Tensor:
    """Rotate the pairs (x_i, x_{i + rotary_dim / 2}) of x [batch, time, heads, head_dim] (RoPE)."""
    if place.cos is None or place.sin is None:
        return x
    cos, sin = place.cos.unsqueeze(2), place.sin.unsqueeze(2)  # the same for all heads
    rotary_dim = 2 * cos.shape[-1]
    first, second = x[..., :rotary_dim].float().chunk(2, dim=-1)
    rotated = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)
    return rotated if rotary_dim == x.shape[-1] else torch.cat([rotated, x[..., rotary_dim:]], dim=-1)
