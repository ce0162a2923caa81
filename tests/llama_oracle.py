"""Tiny random Llama models made by transformers, and the same weights in our decoder: the independent oracle."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from gptfast_cli.core.backends.reference import Reference
from gptfast_cli.core.families import families
from gptfast_cli.core.models.transformer import Transformer
from gptfast_cli.core.models.weights import assemble
from gptfast_cli.core.schemes import Weight
from gptfast_cli.core.schemes.plain import plain

# odd sizes on purpose: no dimension is a multiple of the vector width, and no two are alike
SHAPES: dict[str, dict[str, Any]] = {
    "llama-2": {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
    "grouped-query": {"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 14},
    "multi-query": {"num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 18},
    "llama-3.1": {
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    },
    "linear-rope": {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}},
    "llama-3.2": {"tie_word_embeddings": True, "num_key_value_heads": 1},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "one-layer": {"num_hidden_layers": 1, "vocab_size": 33},
}


def random_llama(*, seed: int = 0, **changes: Any) -> LlamaForCausalLM:
    """A float32 Llama with everything random, norms and biases too: at their usual 1 and 0 a missing one would hide."""
    sizes = {
        "vocab_size": 101,
        "hidden_size": 36,
        "intermediate_size": 52,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "num_key_value_heads": 3,
        "max_position_embeddings": 512,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**{**sizes, **changes})).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
            elif name.endswith("bias"):
                parameter.normal_(std=0.2)
            else:
                parameter.normal_(std=parameter.shape[-1] ** -0.5)
    return model


def saved_llama(folder: Path, *, seed: int = 0, **changes: Any) -> LlamaForCausalLM:
    """A random Llama, also saved to a folder as transformers does it."""
    model = random_llama(seed=seed, **changes)
    model.save_pretrained(folder)
    return model


def ours(model: LlamaForCausalLM, *, kv_dtype: torch.dtype | None = None) -> Transformer:
    """Our decoder over the very tensors of a transformers model."""
    family = families["llama"]
    config = family.config(model.config.to_dict())
    sources = family.sources(config)
    tensors = model.state_dict()

    def read(name: str) -> Weight:
        return plain(torch.cat([tensors[source] for source in sources[name]]))

    return Transformer(config, assemble(config, read), Reference(), torch.float32, kv_dtype=kv_dtype)


def logits(model: Transformer, tokens: Tensor) -> Tensor:
    return model.logits(model.forward(tokens, model.new_cache(tokens.shape[0])))


def greedy(model: Transformer, prompt: Tensor, n_tokens: int) -> list[int]:
    cache = model.new_cache(1)
    x, generated = model.forward(prompt, cache), []
    for _ in range(n_tokens):
        generated.append(int(model.logits(x[:, -1]).argmax()))
        x = model.forward(torch.tensor([[generated[-1]]]), cache)
    return generated
