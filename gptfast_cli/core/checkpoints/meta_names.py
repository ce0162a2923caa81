"""Meta's names for the tensors of a Llama model, which gpt-fast and llama2.c took over with its order of RoPE pairs."""

from collections.abc import Callable

from gptfast_cli.core.checkpoints.foreign import Part, half_split
from gptfast_cli.core.config import ModelConfig

EMBEDDING, NORM, HEAD = "tok_embeddings.weight", "norm.weight", "output.weight"
QUERY, KEY, VALUE = (f"attention.{name}.weight" for name in ("wq", "wk", "wv"))
GATE, UP = (f"feed_forward.{name}.weight" for name in ("w1", "w3"))
OUTPUT, DOWN = "attention.wo.weight", "feed_forward.w2.weight"
ATTENTION_NORM, FFN_NORM = "attention_norm.weight", "ffn_norm.weight"

IN_LAYER = (ATTENTION_NORM, QUERY, KEY, VALUE, OUTPUT, FFN_NORM, GATE, UP, DOWN)


def meta_names(config: ModelConfig) -> list[str]:
    """The name of every tensor that a model of this shape has."""
    layers = [f"layers.{layer}.{name}" for layer in range(config.n_layers) for name in IN_LAYER]
    return [EMBEDDING, *layers, NORM, *([] if config.tied_embeddings else [HEAD])]


def meta_parts(config: ModelConfig, tensor: Callable[[str], Part]) -> dict[str, tuple[Part, ...]]:
    """What each of our weights is stacked from, given Meta's tensors by their names."""
    parts: dict[str, tuple[Part, ...]] = {"embedding": (tensor(EMBEDDING),)}
    for layer in (f"layers.{layer}." for layer in range(config.n_layers)):
        parts[f"{layer}attention_norm"] = (tensor(layer + ATTENTION_NORM),)
        parts[f"{layer}qkv"] = (
            half_split(tensor(layer + QUERY), config.head_dim),
            half_split(tensor(layer + KEY), config.head_dim),
            tensor(layer + VALUE),
        )
        parts[f"{layer}attention_output"] = (tensor(layer + OUTPUT),)
        parts[f"{layer}ffn_norm"] = (tensor(layer + FFN_NORM),)
        parts[f"{layer}gate_up"] = (tensor(layer + GATE), tensor(layer + UP))
        parts[f"{layer}down"] = (tensor(layer + DOWN),)
    parts["norm"] = (tensor(NORM),)
    if not config.tied_embeddings:
        parts["head"] = (tensor(HEAD),)
    return parts
