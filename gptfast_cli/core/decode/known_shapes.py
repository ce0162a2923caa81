"""Shapes of models that everyone knows, as their makers' config.json files have them."""

from dataclasses import replace
from typing import Final

from gptfast_cli.core.config import Llama3Scaling, ModelConfig, RopeConfig

_LLAMA_2_7B = ModelConfig(
    family="llama",
    n_layers=32,
    dim=4096,
    n_heads=32,
    n_kv_heads=32,
    head_dim=128,
    ffn_dim=11008,
    vocab_size=32000,
    max_context=4096,
    norm_eps=1e-5,
    rope=RopeConfig(10_000.0),
)
_LLAMA_2_13B = replace(_LLAMA_2_7B, n_layers=40, dim=5120, n_heads=40, n_kv_heads=40, ffn_dim=13824)
_LLAMA_2_70B = replace(_LLAMA_2_7B, n_layers=80, dim=8192, n_heads=64, n_kv_heads=8, ffn_dim=28672)
_CODELLAMA_7B = replace(_LLAMA_2_7B, vocab_size=32016, max_context=16384, rope=RopeConfig(1_000_000.0))

_LLAMA_3_8B = replace(
    _LLAMA_2_7B, n_kv_heads=8, ffn_dim=14336, vocab_size=128256, max_context=8192, rope=RopeConfig(500_000.0)
)
_LLAMA_3_70B = replace(_LLAMA_2_70B, vocab_size=128256, max_context=8192, rope=_LLAMA_3_8B.rope)

_LLAMA_3_1_CONTEXT = 131_072
_LLAMA_3_1_ROPE = RopeConfig(500_000.0, Llama3Scaling(8.0, 1.0, 4.0, 8192))
_LLAMA_3_2_1B = replace(
    _LLAMA_3_8B,
    n_layers=16,
    dim=2048,
    head_dim=64,
    ffn_dim=8192,
    max_context=_LLAMA_3_1_CONTEXT,
    rope=RopeConfig(500_000.0, Llama3Scaling(32.0, 1.0, 4.0, 8192)),
    tied_embeddings=True,
)

KNOWN_SHAPES: Final = {
    "codellama-7b": _CODELLAMA_7B,
    "codellama-13b": replace(
        _LLAMA_2_13B, vocab_size=32016, max_context=_CODELLAMA_7B.max_context, rope=_CODELLAMA_7B.rope
    ),
    "llama-7b": replace(_LLAMA_2_7B, max_context=2048, norm_eps=1e-6),
    "llama-2-7b": _LLAMA_2_7B,
    "llama-2-13b": _LLAMA_2_13B,
    "llama-2-70b": _LLAMA_2_70B,
    "llama-3-8b": _LLAMA_3_8B,
    "llama-3-70b": _LLAMA_3_70B,
    "llama-3.1-8b": replace(_LLAMA_3_8B, max_context=_LLAMA_3_1_CONTEXT, rope=_LLAMA_3_1_ROPE),
    "llama-3.1-70b": replace(_LLAMA_3_70B, max_context=_LLAMA_3_1_CONTEXT, rope=_LLAMA_3_1_ROPE),
    "llama-3.2-1b": _LLAMA_3_2_1B,
    "llama-3.2-3b": replace(_LLAMA_3_2_1B, n_layers=28, dim=3072, n_heads=24, head_dim=128),
    "openllama-3b": replace(
        _LLAMA_2_7B, n_layers=26, dim=3200, head_dim=100, ffn_dim=8640, max_context=2048, norm_eps=1e-6
    ),
    "tinyllama-1.1b": replace(
        _LLAMA_2_7B, n_layers=22, dim=2048, n_kv_heads=4, head_dim=64, ffn_dim=5632, max_context=2048
    ),
}
"""By the name that `--arch` takes."""
