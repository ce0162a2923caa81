"""Small random decoders whose layers see unequally far and have unlike KV heads; and caches that forget nothing."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from cpu_engine import reference
from gptfast_cli.core.config import AttentionSpec, FeedForwardSpec, LayerSpec, ModelConfig, RopeConfig
from gptfast_cli.core.models.decoder import Decoder
from gptfast_cli.core.models.kv_cache import KVCache
from gptfast_cli.core.models.transformer import Transformer
from layer_features import random_weights

ROPE = RopeConfig(10_000.0)
NARROW = AttentionSpec(4, 2, 14, ROPE, window=40)
MIXED = (NARROW, NARROW, replace(NARROW, window=None), AttentionSpec(3, 1, 18, ROPE, window=200), NARROW)
"""Two windows, and among them a layer that sees all."""

VOCAB_SIZE = 101


def config_of(attentions: Sequence[AttentionSpec] = MIXED) -> ModelConfig:
    layers = tuple(LayerSpec(attention, FeedForwardSpec(52)) for attention in attentions)
    return ModelConfig("llama", layers, 36, VOCAB_SIZE, max_context=4096, norm_eps=1e-5)


def windowed(kv_dtype: torch.dtype | None = None) -> Transformer:
    """A decoder of MIXED layers in float32."""
    config = config_of()
    return reference(config, random_weights(config), kv_dtype=kv_dtype)


def without_windows(config: ModelConfig) -> ModelConfig:
    """The same shape, of which every layer sees all."""
    layers = tuple(replace(each, attention=replace(each.attention, window=None)) for each in config.layers)
    return replace(config, layers=layers)


def cache_of_all(model: Decoder, n_rows: int, *, is_stacked: bool = True) -> KVCache:
    """A cache for this model that keeps every key, of which windows only hide some."""
    kind = {"dtype": model.dtype, "kv_dtype": model.kv_dtype, "device": model.device}
    return KVCache(without_windows(model.config), n_rows, **kind, is_stacked=is_stacked)


def some_tokens(n_rows: int, n_tokens: int, *, seed: int = 0) -> Tensor:
    return torch.randint(VOCAB_SIZE, (n_rows, n_tokens), generator=torch.Generator().manual_seed(seed))
