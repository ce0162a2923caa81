"""A decoder in PyTorch's operations: its layers as their specs describe them, and the model around them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from gptfast_cli.core.backends import REFERENCE
from gptfast_cli.core.backends.base import AttentionNorms, Backend, LayerCache, Linear, Norm, RopePositions, phase
from gptfast_cli.core.backends.reference import softcapped
from gptfast_cli.core.config import LayerSpec, ModelConfig, QKNorm
from gptfast_cli.core.device import to_device, torch_threads
from gptfast_cli.core.models.kv_cache import KVCache
from gptfast_cli.core.models.process_group import ALONE, ProcessGroup
from gptfast_cli.core.models.rope import LayerRotations, positions
from gptfast_cli.core.models.sharding import ModelShard
from gptfast_cli.core.models.weights import LayerWeights, ModelWeights
from gptfast_cli.core.schemes import Weight

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
    """Everything of a layer but its weights; `spec` is that of the rank's shard."""

    backend: Backend
    spec: LayerSpec
    norm_eps: float
    norm_offset: float
    group: ProcessGroup = ALONE

    def __call__(self, x: Tensor, layer: LayerWeights, *, place: RopePositions, cache: LayerCache) -> Tensor:
        """Run x [batch, time, dim] through a layer, writing keys and values into its cache: x again."""
        return self.feed_forward(self.join(x, self.heads(x, layer, place=place, cache=cache), layer), layer)

    def heads(self, x: Tensor, layer: LayerWeights, *, place: RopePositions, cache: LayerCache) -> Tensor:
        """The first part, in which tokens see one another: what the heads make of that, [batch, time, q_dim]."""
        backend, spec = self.backend, self.spec.attention
        with phase("project_qkv"):
            q = backend.project_qkv(
                x,
                layer.qkv,
                norms=self._attention_norms(layer),
                place=place,
                cache=cache,
                spec=spec,
            )
        with phase("attend"):
            return backend.attend(q, cache, place=place, spec=spec)

    def join(self, x: Tensor, heads: Tensor, layer: LayerWeights) -> Tensor:
        """The second part: x with what the heads add to it."""
        with phase("project_output"):
            y = self.backend.project_output(heads, layer.attention_output, residual=self._residual(x))
            return self._added(x, y, layer.attention_output_norm)

    def feed_forward(self, x: Tensor, layer: LayerWeights) -> Tensor:
        """The third part, each token by itself: x with what the feed-forward network adds to it."""
        with phase("gate_up"):
            activation = self.spec.feed_forward.activation
            hidden = self.backend.gate_up(x, layer.gate_up, norm=self._norm(layer.ffn_norm), activation=activation)
        with phase("down"):
            y = self.backend.down(hidden, layer.down, residual=self._residual(x))
            return self._added(x, y, layer.ffn_output_norm)

    def _residual(self, x: Tensor) -> Tensor | None:
        """What a projection may add to its output itself: the residual, on one rank of those that sum up."""
        return x if self._adds_plainly and self.group.rank == 0 else None

    def _added(self, x: Tensor, y: Tensor, norm: Weight | None) -> Tensor:
        """x and a rank's y, which may have x in it already."""
        with phase("sum"):
            y = self.group.sum(y)
        return (
            y if self._adds_plainly else self.backend.add(x, y, norm=self._norm(norm), scale=self.spec.residual_scale)
        )

    @property
    def _adds_plainly(self) -> bool:
        return self.spec.residual_scale == 1 and not self.spec.norms.is_after

    def _norm(self, weight: Weight | None) -> Norm | None:
        return None if weight is None else Norm(weight, self.norm_eps, self.norm_offset)

    def _attention_norms(self, layer: LayerWeights) -> AttentionNorms:
        q, k = self._norm(layer.q_norm), self._norm(layer.k_norm)
        if q is not None and k is not None and self.spec.attention.qk_norm is QKNorm.WIDTH and self.group.size > 1:
            q, k = replace(q, average=self._average), replace(k, average=self._average)
        return AttentionNorms(self._norm(layer.attention_norm), q, k)

    def _average(self, x: Tensor) -> Tensor:
        return self.group.sum(x) / self.group.size


def decoder_layers(config: ModelConfig, backend: Backend, group: ProcessGroup = ALONE) -> list[DecoderLayer]:
    """The layers of a model, or of the part that a rank has, on a backend."""
    of_kind = {kind: DecoderLayer(backend, kind, config.norm_eps, config.norm_offset, group) for kind in config.kinds}
    return [of_kind[layer] for layer in config.layers]


def scaled_embedding(x: Tensor, config: ModelConfig) -> Tensor:
    """Embedding rows as the first layer reads them."""
    if config.embedding_scale == 1:
        return x
    return x * torch.tensor(config.embedding_scale, dtype=x.dtype, device=x.device)


def shaped_logits(logits: Tensor, config: ModelConfig) -> Tensor:
    """Products of the head as the logits of a model."""
    if config.logit_scale != 1:
        logits = logits * config.logit_scale
    return logits if config.logit_softcap is None else softcapped(logits, config.logit_softcap)


ALL_ROWS = slice(None)


class Transformer:
    """A decoder over weights that stay as their schemes store them."""

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
        self._layers = decoder_layers(self.shard.config, backend, group)
        self._rotations = LayerRotations(config.layers, self.device)

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
        yield from (each.radians for each in self._rotations.frequencies)
        weights = [self.weights.embedding, self.weights.norm, self.weights.head]
        weights += [weight for layer in self.weights.layers for weight in layer.all()]
        for weight in weights:
            yield from weight.parts.values()

    def new_cache(self, n_rows: int) -> KVCache:
        """An empty cache for `n_rows` sequences of this model."""
        return KVCache(self.shard.config, n_rows, dtype=self.dtype, kv_dtype=self.kv_dtype, device=self.device)

    def _pieces(self, tokens: Tensor, cache: KVCache, rows: slice) -> Tensor:
        """The hidden states of tokens [batch, time], as many at a time as the cache can take in."""
        x, starts = [], cache.lengths[rows]
        for piece in torch.split(tokens, min(cache.most_tokens, tokens.shape[1]), dim=1):
            layers = cache.layers(rows, starts, piece.shape[1])
            x.append(self._hidden(piece, positions(starts, piece.shape[1], self.device), layers))
            starts = [start + piece.shape[1] for start in starts]
        return torch.cat(x, dim=1)

    def _hidden(self, tokens: Tensor, positions: Tensor, layers: Sequence[LayerCache]) -> Tensor:
        places = self._rotations.at(positions)
        x = scaled_embedding(self._embedded(tokens), self.config)
        for layer, weights, place, cache in zip(self._layers, self.weights.layers, places, layers, strict=True):
            x = layer(x, weights, place=place, cache=cache)
        return x

    def _embedded(self, tokens: Tensor) -> Tensor:
        if self.group.size == 1:
            return self._backend.embed(tokens, self.weights.embedding, self.dtype)
        own = tokens - self.shard.tokens.start
        is_own = (own >= 0) & (own < self.weights.embedding.shape[0])
        x = self._backend.embed(own.where(is_own, 0), self.weights.embedding, self.dtype)
        return self.group.sum(x * is_own.unsqueeze(-1))  # every other rank has zeros there

    def _head(self, x: Tensor) -> Tensor:
        norm = Norm(self.weights.norm, self.config.norm_eps, self.config.norm_offset)
        return shaped_logits(self._backend.head(x, Linear(self.weights.head), norm=norm), self.config)
