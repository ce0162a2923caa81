"""A Llama-like transformer in PyTorch's operations: RoPE, decoder layers, and the model around them.

Pair i of a head of size d turns by position * theta^(-2i/d) (Su et al. 2021, arXiv:2104.09864); scaling stretches
some of these frequencies so that a model reaches further than it was trained.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from gptfast_cli.core.backends import (
    REFERENCE,
    AttentionSpec,
    Backend,
    LayerCache,
    Linear,
    Norm,
    RopePositions,
    phase,
)
from gptfast_cli.core.config import LinearScaling, Llama3Scaling, ModelConfig, RopeConfig
from gptfast_cli.core.device import to_device, torch_threads
from gptfast_cli.core.models.kv_cache import KVCache
from gptfast_cli.core.models.process_group import ALONE, ProcessGroup
from gptfast_cli.core.models.sharding import ModelShard
from gptfast_cli.core.models.weights import LayerWeights, ModelWeights


def frequencies(head_dim: int, rope: RopeConfig) -> Tensor:
    """Radians for each token, [head_dim / 2] float32."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
    plain = 1.0 / rope.theta**exponents
    match rope.scaling:
        case None:
            return plain
        case LinearScaling(factor):
            return plain / factor
        case Llama3Scaling() as scaling:
            return _llama3(plain, scaling)


def rotation(positions: Tensor, frequencies: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine at positions [batch, time]: two [batch, time, head_dim / 2] float32.

    The angles are float32 too, rounded as every trained model saw them.
    """
    angles = positions.unsqueeze(-1).float() * frequencies
    return angles.cos(), angles.sin()


def _llama3(plain: Tensor, scaling: Llama3Scaling) -> Tensor:
    turns = scaling.original_context * plain / (2 * math.pi)  # full turns within the original context
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = ((turns - low) / (high - low)).clamp(0.0, 1.0)  # 1: high frequency, as it was; 0: low, divided
    return (1 - kept) * plain / scaling.factor + kept * plain


_ROWS_AT_ONCE = 16


def logsumexp_argmax(logits: Tensor) -> tuple[Tensor, Tensor]:
    """log(sum(exp(row))) and argmax of each row of logits [rows, vocab_size]: [rows] float32, [rows] int64."""
    return _log_totals(logits), logits.argmax(dim=-1)


def _log_totals(logits: Tensor) -> Tensor:
    """The logarithm of the sum of exponentials of each row, [rows].

    On a CPU a few rows at a time, so that what stands between stays in its cache, and by one thread: several would cut
    a row that stands alone into parts, and add it up in another order.
    """
    if logits.device.type != "cpu":
        return logits.logsumexp(dim=-1)
    with torch_threads(1):
        return torch.cat([rows.logsumexp(dim=-1) for rows in torch.split(logits, _ROWS_AT_ONCE)])


@dataclass(frozen=True, slots=True)
class DecoderLayer:
    """What the layers of a model have in common: everything but their weights."""

    backend: Backend
    attention: AttentionSpec
    norm_eps: float
    group: ProcessGroup = ALONE

    def __call__(self, x: Tensor, layer: LayerWeights, *, place: RopePositions, cache: LayerCache) -> Tensor:
        """Run x [batch, time, dim] through a layer, writing keys and values into its cache: x again."""
        return self.feed_forward(self.join(x, self.heads(x, layer, place=place, cache=cache), layer), layer)

    def heads(self, x: Tensor, layer: LayerWeights, *, place: RopePositions, cache: LayerCache) -> Tensor:
        """The first part, in which tokens see one another: what the heads make of that, [batch, time, q_dim]."""
        backend, spec = self.backend, self.attention
        with phase("project_qkv"):
            norm = Norm(layer.attention_norm, self.norm_eps)
            q = backend.project_qkv(x, layer.qkv, norm=norm, place=place, cache=cache, spec=spec)
        with phase("attend"):
            return backend.attend(q, cache, place=place, spec=spec)

    def join(self, x: Tensor, heads: Tensor, layer: LayerWeights) -> Tensor:
        """The second part: x with what the heads add to it."""
        with phase("project_output"):
            return self._summed(self.backend.project_output(heads, layer.attention_output, residual=self._once(x)))

    def feed_forward(self, x: Tensor, layer: LayerWeights) -> Tensor:
        """The third part, each token by itself: x with what the feed-forward network adds to it."""
        with phase("gate_up"):
            hidden = self.backend.gate_up(x, layer.gate_up, norm=Norm(layer.ffn_norm, self.norm_eps))
        with phase("down"):
            return self._summed(self.backend.down(hidden, layer.down, residual=self._once(x)))

    def _once(self, residual: Tensor) -> Tensor:
        """The residual on one rank, and nothing on the others: what they have is summed up."""
        return residual if self.group.rank == 0 else torch.zeros_like(residual)

    def _summed(self, x: Tensor) -> Tensor:
        with phase("sum"):
            return self.group.sum(x)


def decoder_layer(config: ModelConfig, backend: Backend, group: ProcessGroup = ALONE) -> DecoderLayer:
    """The layer of a model, or of the part that a rank has, on a backend."""
    attention = AttentionSpec(config.n_heads, config.n_kv_heads, config.head_dim)
    return DecoderLayer(backend, attention, config.norm_eps, group)


ALL_ROWS = slice(None)


class Transformer:
    """A decoder of the Llama class over weights that stay as their schemes store them."""

    backend = REFERENCE
    has_own_threads = False
    token_loop = None

    def __init__(
        self,
        config: ModelConfig,
        weights: ModelWeights,
        backend: Backend,
        dtype: torch.dtype,
        *,
        kv_dtype: torch.dtype | None = None,
        group: ProcessGroup = ALONE,
    ) -> None:
        """`weights` are those of this rank's shard of a model of the shape `config`.

        `kv_dtype` is the one that keys and values are kept in; None is that of computing.
        """
        self.config = config
        self.shard = ModelShard(config, group.rank, group.size)
        self.weights = weights
        self.dtype = dtype
        self.kv_dtype = kv_dtype or dtype
        self.device = next(iter(weights.embedding.parts.values())).device
        self._backend = backend
        self.group = group
        self._layer = decoder_layer(self.shard.config, backend, group)
        self._frequencies = frequencies(config.head_dim, config.rope).to(self.device)

    @torch.inference_mode()
    def forward(self, tokens: Tensor, cache: KVCache, *, rows: slice = ALL_ROWS) -> Tensor:
        """Run tokens [batch, time] int64 through all layers, each row going on where its cache ends.

        The tokens are added to the cache. `rows` are the cache rows that the batch stands for.
        Returns [batch, time, dim], to be turned into logits where they are wanted.
        """
        n_rows, time = tokens.shape
        cache.begin(rows, [time] * n_rows)
        x = self._pieces(tokens, cache, rows)
        cache.advance(rows, time)
        return x

    @torch.inference_mode()
    def logits(self, x: Tensor) -> Tensor:
        """Logits of x [..., dim] as `forward` returned it: [..., own tokens] float32."""
        return self._head(x)

    def next_logits(self, tokens: Tensor, positions: Tensor, layers: Sequence[LayerCache]) -> Tensor:
        return self._head(self._hidden(tokens, positions, layers)[:, -1])

    @property
    def compilable(self) -> "Transformer":
        return self

    @property
    def weight_bytes(self) -> int:
        return self.weights.n_bytes

    @property
    def embedding_bytes(self) -> int:
        return self.weights.embedding.n_bytes

    def step(self, tokens: Sequence[Sequence[int]], cache: KVCache, rows: slice) -> Tensor:
        cache.begin(rows, [len(row) for row in tokens])
        batch, _ = self.inputs(tokens, cache, rows)
        return self._head(self._pieces(batch, cache, rows)[:, -1])

    def feed(
        self, tokens: Sequence[Tensor], cache: KVCache, rows: slice, wanted: Sequence[int] | None = None
    ) -> Tensor:
        # shorter rows are padded with zeros, whose slots are past the length that is counted
        longest = max(map(len, tokens))
        cache.begin(rows, [longest] * len(tokens))
        if longest > cache.most_tokens:  # a short row is not to be written over so far past its end
            slots = range(*rows.indices(cache.n_rows))
            parts = [self._pieces(own[None], cache, slice(n, n + 1))[0] for n, own in zip(slots, tokens, strict=True)]
        else:
            padded = self._pieces(pad_sequence(list(tokens), batch_first=True), cache, rows)
            parts = [padded[row, : len(own)] for row, own in enumerate(tokens)]
        x = torch.cat(parts)
        return self._head(x if wanted is None else x[to_device(wanted, torch.int64, self.device)])

    def logsumexp_argmax(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        return logsumexp_argmax(logits)

    def inputs(self, tokens: Sequence[Sequence[int]], cache: KVCache, rows: slice) -> tuple[Tensor, Tensor]:
        flat = to_device([token for row in tokens for token in row], torch.int64, self.device)
        batch = flat.view(len(tokens), -1)
        return batch, positions(cache.lengths[rows], batch.shape[1], self.device)

    def tensors(self) -> Iterator[Tensor]:
        weights = [self.weights.embedding, self.weights.norm, self.weights.head]
        for layer in self.weights.layers:
            linears = (layer.qkv, layer.attention_output, layer.gate_up, layer.down)
            weights += [layer.attention_norm, layer.ffn_norm, *(linear.weight for linear in linears)]
            weights += [linear.bias for linear in linears if linear.bias is not None]
        yield self._frequencies
        for weight in weights:
            yield from weight.parts.values()

    def new_cache(self, n_rows: int) -> KVCache:
        """An empty cache for `n_rows` sequences of this model."""
        return KVCache(self.shard.config, n_rows, dtype=self.dtype, kv_dtype=self.kv_dtype, device=self.device)

    def _pieces(self, tokens: Tensor, cache: KVCache, rows: slice) -> Tensor:
        """The hidden states of tokens [batch, time], as many at a time as the cache can take in."""
        x, starts = [], cache.lengths[rows]
        for piece in torch.split(tokens, min(cache.most_tokens, tokens.shape[1]), dim=1):
            layers = cache.layers(rows=rows, n_keys=max(starts) + piece.shape[1])
            x.append(self._hidden(piece, positions(starts, piece.shape[1], self.device), layers))
            starts = [start + piece.shape[1] for start in starts]
        return torch.cat(x, dim=1)

    def _hidden(self, tokens: Tensor, positions: Tensor, layers: Sequence[LayerCache]) -> Tensor:
        place = RopePositions(positions, *rotation(positions, self._frequencies))
        x = self._embedded(tokens)
        for layer, cache in zip(self.weights.layers, layers, strict=True):
            x = self._layer(x, layer, place=place, cache=cache)
        return x

    def _embedded(self, tokens: Tensor) -> Tensor:
        if self.group.size == 1:
            return self._backend.embed(tokens, self.weights.embedding, self.dtype)
        own = tokens - self.shard.tokens.start
        is_own = (own >= 0) & (own < self.weights.embedding.shape[0])
        x = self._backend.embed(own.where(is_own, 0), self.weights.embedding, self.dtype)
        return self.group.sum(x * is_own.unsqueeze(-1))  # every other rank has zeros there

    def _head(self, x: Tensor) -> Tensor:
        norm = Norm(self.weights.norm, self.config.norm_eps)
        return self._backend.head(x, Linear(self.weights.head), norm=norm)


def positions(starts: Sequence[int], time: int, device: torch.device) -> Tensor:
    """Positions of `time` tokens that go on from each start, [batch, time] int64."""
    first = to_device(starts, torch.int64, device).unsqueeze(-1)
    return first + torch.arange(time, device=device)
