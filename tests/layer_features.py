"""Random models with one layer feature after the other, built by hand: what families of models are made of."""

import zlib
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from gptfast_cli.core.config import (
    Activation,
    AttentionSpec,
    FeedForwardSpec,
    LayerSpec,
    ModelConfig,
    NormPlacement,
    QKNorm,
    QueryScaling,
    RopeConfig,
)
from gptfast_cli.core.models.weights import weight_shapes
from gptfast_cli.core.schemes import Weight
from gptfast_cli.core.schemes.plain import plain

ATTENTION = AttentionSpec(4, 2, 32, RopeConfig(10_000.0))
LAYER = LayerSpec(ATTENTION, FeedForwardSpec(52))
WINDOWED = replace(LAYER, attention=replace(ATTENTION, window=20, rope=RopeConfig(500.0)))
CONFIG = ModelConfig(
    family="llama",
    layers=(LAYER, LAYER),
    dim=72,  # wider than the feed-forward and not a multiple of a vector
    vocab_size=61,
    max_context=4096,
    norm_eps=1e-5,
)


def with_attention(**changes: object) -> ModelConfig:
    """The model whose attention is changed so."""
    layer = replace(LAYER, attention=replace(ATTENTION, **changes))  # type: ignore[arg-type]
    return replace(CONFIG, layers=(layer, layer))


def with_layer(**changes: object) -> ModelConfig:
    """The model whose layers are changed so."""
    layer = replace(LAYER, **changes)  # type: ignore[arg-type]
    return replace(CONFIG, layers=(layer, layer))


CONFIGS: Mapping[str, ModelConfig] = {
    "window": with_attention(window=20),
    "window of a block": with_attention(window=128),
    "window of one": with_attention(window=1),
    "layers with and without a window, and two RoPEs": replace(CONFIG, layers=(WINDOWED, LAYER, WINDOWED)),
    "a layer without RoPE": replace(CONFIG, layers=(LAYER, replace(LAYER, attention=replace(ATTENTION, rope=None)))),
    "partial RoPE": with_attention(rope=RopeConfig(10_000.0, rotary_dim=12)),
    "score scale": with_attention(scale=0.3),
    "score softcap": with_attention(softcap=2.0, window=30),
    "QK-norm of heads": with_attention(qk_norm=QKNorm.HEAD),
    "QK-norm of the width": with_attention(qk_norm=QKNorm.WIDTH),
    "queries scaled by position": with_attention(query_scaling=QueryScaling(0.7, 50)),
    "biases": replace(with_attention(qkv_bias=True), dim=40),
    "norms after": with_layer(norms=NormPlacement.POST),
    "norms before and after": with_layer(norms=NormPlacement.BOTH, residual_scale=0.4),
    "residual scale": with_layer(residual_scale=0.22),
    "GELU": with_layer(feed_forward=FeedForwardSpec(150, Activation.GELU_TANH)),
    "scales around the layers": replace(CONFIG, embedding_scale=5.5, logit_scale=0.3, logit_softcap=1.5),
    "an offset of norms": replace(with_layer(norms=NormPlacement.BOTH), norm_offset=1.0),
}


def random_weights(config: ModelConfig) -> dict[str, Weight]:
    """Weights that are random everywhere, norms and biases too."""
    return {name: plain(_random(name, shape)) for name, shape in weight_shapes(config).items()}


def _random(name: str, shape: tuple[int, ...]) -> Tensor:
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    if "norm" in name:
        return torch.rand(shape, generator=generator) + 0.5
    return torch.randn(shape, generator=generator) * (0.2 if len(shape) == 1 else shape[-1] ** -0.5)
