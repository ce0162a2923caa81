"""The names and shapes of a model's weights, and the weights themselves in the order in which a step reads them.

Query, key and value rows stand in one matrix, as do gate and up: one product instead of three or two, and
one ascending stream of memory.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from gptfast_cli.core.config import ModelConfig
from gptfast_cli.core.formats import Weight
from gptfast_cli.core.kernels import Linear


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
    """A whole decoder; with tied embeddings `head` is the very object `embedding`."""

    embedding: Weight  # [vocab_size, dim]
    layers: tuple[LayerWeights, ...]
    norm: Weight  # [dim]
    head: Weight  # [vocab_size, dim]

    @cached_property
    def n_bytes(self) -> int:
        """Bytes of all weights as they stand in memory; a tied head counts once."""
        layers = sum(layer.n_bytes for layer in self.layers)
        head = 0 if self.head is self.embedding else self.head.n_bytes
        return self.embedding.n_bytes + layers + self.norm.n_bytes + head


def weight_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shape of every weight that a checkpoint of this shape holds, by name, in reading order."""
    shapes: dict[str, tuple[int, ...]] = {"embedding": (config.vocab_size, config.dim)}
    for layer in range(config.n_layers):
        for name, shape in _layer_shapes(config).items():
            shapes[f"layers.{layer}.{name}"] = shape
    shapes["norm"] = (config.dim,)
    if not config.tied_embeddings:
        shapes["head"] = (config.vocab_size, config.dim)
    return shapes


def assemble(config: ModelConfig, read: Callable[[str], Weight]) -> ModelWeights:
    """Put a model together; `read` gives the weight of a name and is called once for each, in reading order."""
    weights = {name: read(name) for name in weight_shapes(config)}

    def linear(name: str) -> Linear:
        return Linear(weights[name], weights.get(f"{name}_bias"))

    layers = tuple(
        LayerWeights(
            attention_norm=weights[f"layers.{i}.attention_norm"],
            qkv=linear(f"layers.{i}.qkv"),
            attention_output=linear(f"layers.{i}.attention_output"),
            ffn_norm=weights[f"layers.{i}.ffn_norm"],
            gate_up=linear(f"layers.{i}.gate_up"),
            down=linear(f"layers.{i}.down"),
        )
        for i in range(config.n_layers)
    )
    embedding = weights["embedding"]
    return ModelWeights(embedding, layers, weights["norm"], weights.get("head", embedding))


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
