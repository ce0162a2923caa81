"""Tensor parallelism (Megatron-LM, Shoeybi et al. 2019, arXiv:1909.08053): the shard of each weight on a rank.

Query, key, value, gate and up are sharded by rows: each rank has whole heads and whole features of the feed-forward.
Output and down are sharded by columns, so that an all-reduce follows attention and the feed-forward. Embedding and head
are sharded by tokens. With fewer KV heads than ranks, KV heads are replicated.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from gptfast_cli.core.config import LayerSpec, ModelConfig, QKNorm
from gptfast_cli.core.errors import UsageError
from gptfast_cli.core.models.weights import VOCABULARY_WEIGHTS, layer_of
from gptfast_cli.core.schemes import WHOLE, Block

_MOST_RANKS = 64


@dataclass(frozen=True, slots=True)
class ModelShard:
    """The shard of rank `rank` of `size`, of a model with the shape `whole`."""

    whole: ModelConfig
    rank: int
    size: int

    @property
    def config(self) -> ModelConfig:
        """The shape of the shard: its own heads, features and tokens."""
        parts = {kind: self._layer(kind) for kind in self.whole.kinds}
        return replace(
            self.whole,
            layers=tuple(parts[layer] for layer in self.whole.layers),
            vocab_size=_length(self.tokens),
        )

    def _layer(self, layer: LayerSpec) -> LayerSpec:
        n_heads, n_kv_heads = _length(self.heads(layer)), _length(self.kv_heads(layer))
        return replace(
            layer,
            attention=replace(layer.attention, n_heads=n_heads, n_kv_heads=n_kv_heads),
            feed_forward=replace(layer.feed_forward, dim=_length(self.features(layer))),
        )

    def heads(self, layer: LayerSpec) -> slice:
        """Query heads of a layer."""
        return _even(layer.attention.n_heads, self.rank, self.size)

    def kv_heads(self, layer: LayerSpec) -> slice:
        """KV heads of these query heads."""
        group, heads = layer.attention.n_heads // layer.attention.n_kv_heads, self.heads(layer)
        return slice(heads.start // group, -(-heads.stop // group))

    def features(self, layer: LayerSpec) -> slice:
        """Features of the feed-forward network of a layer."""
        return _even(layer.feed_forward.dim, self.rank, self.size)

    @property
    def tokens(self) -> slice:
        """Tokens whose embeddings and logits this rank holds; the last ranks may have fewer."""
        n = self.n_tokens
        return slice(min(self.rank * n, self.whole.vocab_size), min((self.rank + 1) * n, self.whole.vocab_size))

    @property
    def n_tokens(self) -> int:
        """Tokens per rank, before the last ones."""
        return -(-self.whole.vocab_size // self.size)

    def block(self, name: str) -> Block | None:
        """The block of a weight, by its name in `weight_shapes`; None if only the first rank holds it."""
        if name in VOCABULARY_WEIGHTS:
            return Block(rows=(self.tokens,))
        return self._block_in_layer(self.whole.layers[layer_of(name)], name) if "." in name else WHOLE

    def _block_in_layer(self, layer: LayerSpec, name: str) -> Block | None:
        attention, features = layer.attention, self.features(layer)
        queries, keys = (_scaled(heads, attention.head_dim) for heads in (self.heads(layer), self.kv_heads(layer)))
        rows_of_qkv = Block(
            rows=(queries, _shifted(keys, attention.q_dim), _shifted(keys, attention.q_dim + attention.kv_dim))
        )
        rows_of_gate_up = Block(rows=(features, _shifted(features, layer.feed_forward.dim)))
        added_once = WHOLE if self.rank == 0 else None
        blocks = {
            "qkv": rows_of_qkv,
            "qkv_bias": rows_of_qkv,
            "attention_output": Block(columns=queries),
            "attention_output_bias": added_once,
            "gate_up": rows_of_gate_up,
            "gate_up_bias": rows_of_gate_up,
            "down": Block(columns=features),
            "down_bias": added_once,
        }
        if attention.qk_norm is QKNorm.WIDTH:
            blocks |= {"q_norm": Block(rows=(queries,)), "k_norm": Block(rows=(keys,))}
        return blocks.get(name.rpartition(".")[2], WHOLE)


def check_divides(config: ModelConfig, size: int) -> None:
    """Raise UsageError if heads or features of the feed-forward are not divisible by `size`."""
    obstacle = next(_obstacles(config, size), None)
    if obstacle is not None:
        even = [n for n in range(1, _MOST_RANKS + 1) if not any(_obstacles(config, n))]
        raise UsageError(f"--tp {size}: {obstacle}.", f"Possible values: {', '.join(map(str, even))}.")


def _obstacles(config: ModelConfig, size: int) -> Iterator[str]:
    for attention, feed_forward in ((kind.attention, kind.feed_forward) for kind in config.kinds):
        if attention.n_heads % size:
            yield f"{attention.n_heads} query heads are not divisible by {size}"
        if attention.n_kv_heads % size and size % attention.n_kv_heads:
            yield f"{attention.n_kv_heads} KV heads are not divisible by {size}"
        if feed_forward.dim % size:
            yield f"ffn_dim {feed_forward.dim} is not divisible by {size}"


def _even(count: int, rank: int, size: int) -> slice:
    n = count // size
    return slice(rank * n, (rank + 1) * n)


def _length(part: slice) -> int:
    return int(part.stop - part.start)


def _scaled(part: slice, factor: int) -> slice:
    return slice(part.start * factor, part.stop * factor)


def _shifted(part: slice, by: int) -> slice:
    return slice(part.start + by, part.stop + by)
