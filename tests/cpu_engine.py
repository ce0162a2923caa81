"""The CPU engine over the weights of random models, for tests; compiled once for each processor that it is tried as."""

import ctypes
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from gptfast_cli.core.backends.cpu.compiler import compile_library, is_whole, library_file
from gptfast_cli.core.backends.cpu.engine import ComputeOptions
from gptfast_cli.core.backends.cpu.library import open_library
from gptfast_cli.core.backends.reference import Reference
from gptfast_cli.core.config import ModelConfig
from gptfast_cli.core.families import families
from gptfast_cli.core.models.decoder import Decoder
from gptfast_cli.core.models.kv_cache import KVCache
from gptfast_cli.core.models.native import NativeModel
from gptfast_cli.core.models.transformer import Transformer
from gptfast_cli.core.models.weights import assemble, weight_blocks, weight_shapes
from gptfast_cli.core.quantize.quantizers import quantizers
from gptfast_cli.core.schemes import Weight, quantized, schemes
from gptfast_cli.core.schemes.plain import plain
from llama_oracle import random_llama

SHAPES = {
    "grouped heads, odd sizes": {
        "hidden_size": 96,
        "intermediate_size": 150,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
    },
    "one key head, biases": {
        "hidden_size": 320,
        "intermediate_size": 513,
        "num_attention_heads": 5,
        "num_key_value_heads": 1,
        "head_dim": 64,
        "attention_bias": True,
        "mlp_bias": True,
        "vocab_size": 257,
    },
    "own heads, wide": {
        "hidden_size": 128,
        "intermediate_size": 300,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 128,
        "num_hidden_layers": 1,
    },
    "many queries a head": {
        "hidden_size": 40,
        "intermediate_size": 64,
        "num_attention_heads": 20,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "num_hidden_layers": 1,
    },
}
STORAGES = ["float32", "bfloat16", "float16", "int8", "int4-32", "int4-64", "int4-128", "int4-256"]


def library() -> ctypes.CDLL:
    """The engine of this machine, or of the processor that GPTFAST_CPU_ARCH names."""
    file = library_file(Path(os.environ["GPTFAST_KERNELS"]))
    if not is_whole(file):
        compile_library(file)
    return open_library(file)


def weights_of(shape: str, storage: str, **changes: object) -> tuple[ModelConfig, dict[str, Weight]]:
    """A random model's weights, its matrices stored so."""
    model = random_llama(**(SHAPES[shape] | changes))  # type: ignore[arg-type]
    config = families["llama"].config(model.config.to_dict())
    sources, tensors = families["llama"].sources(config), model.state_dict()
    joined = {name: torch.cat([tensors[source] for source in sources[name]]) for name in weight_shapes(config)}
    return config, {name: stored(tensor, storage) for name, tensor in joined.items()}


def stored(tensor: Tensor, storage: str) -> Weight:
    if tensor.ndim == 1:
        return plain(tensor)
    if storage in ("float32", "bfloat16", "float16"):
        return plain(tensor.to(getattr(torch, storage)))
    scheme, _, group_size = storage.partition("-")
    return quantizers["nearest"].quantize(tensor, quantized(scheme), int(group_size) if group_size else None)


def native(
    config: ModelConfig,
    weights: dict[str, Weight],
    dtype: torch.dtype,
    *,
    n_threads: int = 1,
    float_activations: bool = False,
    kv_dtype: torch.dtype | None = None,
) -> NativeModel:
    computing = ComputeOptions(dtype, kv_dtype or dtype, float_activations)
    model = NativeModel(library(), config, computing, n_threads=n_threads)
    for block in weight_blocks(config):
        model.take({name: weights[name] for name in block})
    return model


def reference(
    config: ModelConfig,
    weights: dict[str, Weight],
    dtype: torch.dtype = torch.float32,
    kv_dtype: torch.dtype | None = None,
) -> Transformer:
    moved = {name: schemes[each.scheme].to(each, torch.device("cpu"), dtype) for name, each in weights.items()}
    return Transformer(config, assemble(config, moved.__getitem__), Reference(), dtype, kv_dtype=kv_dtype)


def filled_cache(model: Decoder, n_rows: int, n_tokens: int) -> KVCache:
    """An empty cache in whose free slots stands what may stand there: anything finite."""
    cache = model.new_cache(n_rows)
    cache.begin(slice(None), [n_tokens] * n_rows)
    fill(cache)
    return cache


def fill(cache: KVCache) -> None:
    """Fill every slot of the blocks that rows have with what may stand in a free one: anything finite."""
    for group in cache.groups:
        blocks = [group.pool.layers(block) for block in range(group.pool.n_used)]
        parts = [part for block in blocks for layer in block for part in layer.values()]
        for part in (*parts, *group.recent):
            part.fill_(1e4 if part.is_floating_point() else 127)


def copy_blocks(source: KVCache, target: KVCache) -> None:
    """Copy all that rows have into a cache whose rows have the same blocks."""
    for theirs, ours in zip(source.groups, target.groups, strict=True):
        for block in range(theirs.pool.n_used):
            for their_layer, our_layer in zip(theirs.pool.layers(block), ours.pool.layers(block), strict=True):
                for name, part in their_layer.items():
                    our_layer[name].copy_(part)
        for recent, copied in zip(theirs.recent, ours.recent, strict=True):
            copied.copy_(recent)


def fed(model: Decoder, tokens: Sequence[int], pieces: Sequence[int], *, row: int = 0, n_rows: int = 1) -> Tensor:
    """Logits after each piece of a text that is fed to one row of a cache in pieces of these lengths."""
    cache = filled_cache(model, n_rows, len(tokens))
    logits, first = [], 0
    for n in pieces:
        logits.append(model.step([tokens[first : first + n]], cache, slice(row, row + 1)))
        cache.advance(slice(row, row + 1), n)
        first += n
    assert first == len(tokens)
    return torch.cat(logits)


def some_tokens(vocab_size: int, n: int) -> list[int]:
    return torch.randint(vocab_size, (n,), generator=torch.Generator().manual_seed(0)).tolist()


def relative_error(given: Tensor, expected: Tensor) -> float:
    return float((given - expected).norm() / expected.norm())
