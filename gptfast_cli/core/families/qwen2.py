"""Qwen2 and Qwen2.5, dense: queries, keys and values have biases."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from gptfast_cli.core.config import LayerSpec, ModelConfig
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


class Qwen2:
    """Qwen2ForCausalLM of transformers: https://huggingface.co/docs/transformers/model_doc/qwen2."""

    model_types = ("qwen2",)
    architectures = ("Qwen2ForCausalLM",)
    defaults: Mapping[str, Any] = {
        **LLAMA,
        "vocab_size": 151_936,
        "intermediate_size": 22_016,
        "num_key_value_heads": 32,
        "max_position_embeddings": 32_768,
        "use_sliding_window": False,
        "sliding_window": 4096,
        "max_window_layers": 28,
    }
    neutral: Mapping[str, tuple[Any, ...]] = {}
    gguf = (GgufLayout("qwen2"),)

    def config(self, hf_config: Mapping[str, Any]) -> ModelConfig:
        fields = decoder_fields(hf_config, self.defaults, self.neutral)
        heads, network = attention(fields, qkv_bias=True), feed_forward(fields)
        layers = tuple(LayerSpec(replace(heads, window=window), network) for window in upper_windows(fields))
        return model_config(fields, "qwen2", layers)

    def sources(self, config: ModelConfig) -> dict[str, tuple[str, ...]]:
        return decoder_sources(config)


PLUG = Qwen2()
