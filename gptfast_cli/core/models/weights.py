"""The names and shapes of a model's weights, and the weights themselves in the order in which a step reads them.

Query, key and value rows stand in one matrix, as do gate and up: one product instead of three or two, and
one ascending stream of memory.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from gptfast_cli.core.backends.base import Linear
from gptfast_cli.core.config import LayerSpec, ModelConfig, QKNorm
from gptfast_cli.core.schemes import Weight

VOCABULARY_WEIGHTS = ("embedding", "head")
"""Weights with one row per token of the vocabulary."""


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One decoder layer; its spec says which norms and biases there are."""

    qkv: Linear  # [q_dim + 2 kv_dim, dim]: all query rows, then key rows, then value rows
    attention_output: Linear  # [dim, q_dim]
    gate_up: Linear  # [2 ffn_dim, dim]: all gate rows, then all up rows
    down: Linear  # [dim, ffn_dim]
    attention_norm: Weight | None = None  # [dim], of the input of attention
    q_norm: Weight | None = None  # [head_dim] or [q_dim]
    k_norm: Weight | None = None  # [head_dim] or [kv_dim]
    attention_output_norm: Weight | None = None  # [dim]
    ffn_norm: Weight | None = None  # [dim], of the input of the feed-forward
    ffn_output_norm: Weight | None = None  # [dim]

    def all(self) -> Iterator[Weight]:
        """Every weight of the layer."""
        for linear in (self.qkv, self.attention_output, self.gate_up, self.down):
            yield linear.weight
            if linear.bias is not None:
                yield linear.bias
        yield from (weight for name in _NORMS if (weight := getattr(self, name)) is not None)

    @property
    def n_bytes(self) -> int:
        """Bytes of the layer's weights."""
        return sum(weight.n_bytes for weight in self.all())


_NORMS = ("attention_norm", "q_norm", "k_norm", "attention_output_norm", "ffn_norm", "ffn_output_norm")


@dataclass(frozen=True)
class ModelWeights:
    """All weights of a decoder; with tied embeddings `head is embedding`."""

    embedding: Weight  # [vocab_size, dim]
    layers: tuple[LayerWeights, ...]
    norm: Weight  # [dim]
    head: Weight  # [vocab_size, dim]

    @cached_property
    def n_bytes(self) -> int:
        """Bytes of all weights in memory; a tied head counts once."""
        layers = sum(layer.n_bytes for layer in self.layers)
        head = 0 if self.head is self.embedding else self.head.n_bytes
        return self.embedding.n_bytes + layers + self.norm.n_bytes + head


def weight_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shape of every weight by name, in reading order."""
    table = (config.vocab_size, config.dim)
    shapes: dict[str, tuple[int, ...]] = {"embedding": table}
    of_kind = {kind: layer_shapes(kind, config.dim) for kind in config.kinds}
    for number, layer in enumerate(config.layers):
        shapes |= {f"layers.{number}.{name}": shape for name, shape in of_kind[layer].items()}
    return shapes | {"norm": (config.dim,)} | ({} if config.tied_embeddings else {"head": table})


def weight_blocks(config: ModelConfig) -> list[tuple[str, ...]]:
    """The names in blocks, one pass over a model: embedding, each layer, final norm and head."""
    layers = [
        tuple(f"layers.{number}.{name}" for name in layer_shapes(layer, config.dim))
        for number, layer in enumerate(config.layers)
    ]
    return [("embedding",), *layers, ("norm",) if config.tied_embeddings else ("norm", "head")]


def layer_of(name: str) -> int:
    """The layer number in a weight's name, `layers.N.…`."""
    return int(name.split(".", 2)[1])


def assemble(config: ModelConfig, read: Callable[[str], Weight]) -> ModelWeights:
    """Assemble a model; `read` returns the weight of a name and is called once for each, in reading order."""
    embedding, *layers, ends = ({name: read(name) for name in block} for block in weight_blocks(config))
    return ModelWeights(
        embedding=embedding["embedding"],
        layers=tuple(map(assemble_layer, layers)),
        norm=ends["norm"],
        head=ends.get("head", embedding["embedding"]),
    )


def assemble_layer(block: Mapping[str, Weight]) -> LayerWeights:
    """Assemble a layer from its weights by full names, `layers.N.…`."""
    weights = {name.split(".", 2)[2]: weight for name, weight in block.items()}

    def linear(name: str) -> Linear:
        return Linear(weights[name], weights.get(f"{name}_bias"))

    return LayerWeights(
        qkv=linear("qkv"),
        attention_output=linear("attention_output"),
        gate_up=linear("gate_up"),
        down=linear("down"),
        **{name: weights[name] for name in _NORMS if name in weights},
    )


def layer_shapes(layer: LayerSpec, dim: int) -> dict[str, tuple[int, ...]]:
    """Shape of every weight of a layer by its name there, in reading order."""
    attention, n_features = layer.attention, layer.feed_forward.dim
    shapes: dict[str, tuple[int, ...]] = {
        "attention_norm": (dim,),
        "qkv": (attention.qkv_dim, dim),
        "q_norm": (attention.head_dim if attention.qk_norm is QKNorm.HEAD else attention.q_dim,),
        "k_norm": (attention.head_dim if attention.qk_norm is QKNorm.HEAD else attention.kv_dim,),
        "attention_output": (dim, attention.q_dim),
        "attention_output_norm": (dim,),
        "ffn_norm": (dim,),
        "gate_up": (2 * n_features, dim),
        "down": (dim, n_features),
        "ffn_output_norm": (dim,),
        "qkv_bias": (attention.qkv_dim,),
        "attention_output_bias": (dim,),
        "gate_up_bias": (2 * n_features,),
        "down_bias": (dim,),
    }
    lacking = {
        ("attention_norm", "ffn_norm"): not layer.norms.is_before,
        ("attention_output_norm", "ffn_output_norm"): not layer.norms.is_after,
        ("q_norm", "k_norm"): attention.qk_norm is None,
        ("qkv_bias",): not attention.qkv_bias,
        ("attention_output_bias",): not attention.output_bias,
        ("gate_up_bias", "down_bias"): not layer.feed_forward.bias,
    }
    absent = {name for names, is_absent in lacking.items() if is_absent for name in names}
    return {name: shape for name, shape in shapes.items() if name not in absent}
