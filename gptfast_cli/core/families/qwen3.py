"""Qwen3, dense: heads of a size of their own, whose queries and keys are normalized."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from gptfast_cli.core.config import LayerSpec, ModelConfig, QKNorm
from gptfast_cli.core.families._decoder import (
    LLAMA,
    attention,
    decoder_fields,
    decoder_sources,
    feed_forward,
    model_config,
    upper_windows,
)
from gptfast_cli.core.families._gguf import GgufLayout


class Qwen3:
    """Qwen3ForCausalLM of transformers: https://huggingface.co/docs/transformers/model_doc/qwen3."""

    model_types = ("qwen3",)
    architectures = ("Qwen3ForCausalLM",)
    defaults: Mapping[str, Any] = {
        **LLAMA,
        "vocab_size": 151_936,
        "intermediate_size": 22_016,
        "num_key_value_heads": 32,
        "head_dim": 128,
        "max_position_embeddings": 32_768,
        "use_sliding_window": False,
        "sliding_window": 4096,
        "max_window_layers": 28,
    }
    neutral: Mapping[str, tuple[Any, ...]] = {}
    gguf = (GgufLayout("qwen3"),)

    def config(self, hf_config: Mapping[str, Any]) -> ModelConfig:
        fields = decoder_fields(hf_config, self.defaults, self.neutral)
        bias = fields.flag("attention_bias")
        heads = attention(fields, qk_norm=QKNorm.HEAD, qkv_bias=bias, output_bias=bias)
        network = feed_forward(fields)
        layers = tuple(LayerSpec(replace(heads, window=window), network) for window in upper_windows(fields))
        return model_config(fields, "qwen3", layers)

    def sources(self, config: ModelConfig) -> dict[str, tuple[str, ...]]:
        return decoder_sources(config)


PLUG = Qwen3()
