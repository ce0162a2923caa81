"""The names and shapes of a model's weights, and the weights themselves in the order in which a step reads them.

Query, key and value rows stand in one matrix, as do gate and up: one product instead of three or two, and
one ascending stream of memory.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

from gptfast_cli.core.backends import Linear
from gptfast_cli.core.config import ModelConfig
from gptfast_cli.core.schemes import Weight

VOCABULARY_WEIGHTS = ("embedding", "head")
"""Weights with one row per token of the vocabulary."""


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One decoder layer."""

    attention_norm: Weight  # [dim]
    qkv: Linear  # [q_dim + 2 kv_dim, dim]: all query rows, then key rows, then value rows
    attention_output: Linear  # [dim, q_dim]
    ffn_norm: Weight  # [dim]
    gate_up: Linear  # [2 ffn_dim, dim]: all gate rows, then all up rows
    down: Linear  # [dim, ffn_dim]

    @property
    def n_bytes(self) -> int:
        """Bytes of the layer's weights."""
        linears = (self.qkv, self.attention_output, self.gate_up, self.down)
        return self.attention_norm.n_bytes + self.ffn_norm.n_bytes + sum(linear.n_bytes for linear in linears)


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
    table, in_layer = (config.vocab_size, config.dim), _layer_shapes(config)
    ends = {"embedding": table, "norm": (config.dim,), "head": table}
    names = [name for block in weight_blocks(config) for name in block]
    return {name: ends[name] if name in ends else in_layer[name.split(".", 2)[2]] for name in names}


def weight_blocks(config: ModelConfig) -> list[tuple[str, ...]]:
    """The names in blocks, one pass over a model: embedding, each layer, final norm and head."""
    layers = [tuple(f"layers.{layer}.{name}" for name in _layer_shapes(config)) for layer in range(config.n_layers)]
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
        attention_norm=weights["attention_norm"],
        qkv=linear("qkv"),
        attention_output=linear("attention_output"),
        ffn_norm=weights["ffn_norm"],
        gate_up=linear("gate_up"),
        down=linear("down"),
    )


def _layer_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "attention_norm": (config.dim,),
        "qkv": (config.qkv_dim, config.dim),
        "attention_output": (config.dim, config.q_dim),
        "ffn_norm": (config.dim,),
        "gate_up": (2 * config.ffn_dim, config.dim),
        "down": (config.dim, config.ffn_dim),
    }
    if config.attention_bias:
        shapes |= {"qkv_bias": (config.qkv_dim,), "attention_output_bias": (config.dim,)}
    if config.ffn_bias:
        shapes |= {"gate_up_bias": (2 * config.ffn_dim,), "down_bias": (config.dim,)}
    return shapes
