"""A small model on the GPU, the same each time."""

import torch

from gptfast_cli.core.backends.reference import Reference
from gptfast_cli.core.families import families
from gptfast_cli.core.models.transformer import Transformer
from gptfast_cli.core.models.weights import assemble, weight_shapes
from gptfast_cli.core.schemes import schemes
from gptfast_cli.core.schemes.plain import plain
from llama_oracle import random_llama


def tiny_llama(*, kv_dtype: torch.dtype | None = None) -> Transformer:
    """In float32."""
    family, reference = families["llama"], random_llama()
    config = family.config(reference.config.to_dict())
    sources, tensors = family.sources(config), reference.state_dict()
    weights = {name: plain(torch.cat([tensors[source] for source in sources[name]])) for name in weight_shapes(config)}
    device = torch.device("cuda")
    moved = {name: schemes["plain"].to(weight, device, torch.float32) for name, weight in weights.items()}
    return Transformer(config, assemble(config, moved.__getitem__), Reference(), torch.float32, kv_dtype=kv_dtype)
