"""Llama 1, 2, 3, 3.1 and 3.2, CodeLlama, OpenLLaMA, TinyLlama, Yi, DeepSeek LLM and every other shape of theirs."""

from collections.abc import Mapping
from typing import Any

from gptfast_cli.core.config import LayerSpec, ModelConfig
from gptfast_cli.core.families._decoder import (
    LLAMA,
    attention,
    decoder_fields,
    decoder_sources,
    feed_forward,
    model_config,
    n_layers,
)
from gptfast_cli.core.families._gguf import GgufLayout


class Llama:
    """LlamaForCausalLM of transformers: https://huggingface.co/docs/transformers/model_doc/llama."""

    model_types = ("llama",)
    architectures = ("LlamaForCausalLM",)
    defaults = LLAMA
    neutral: Mapping[str, tuple[Any, ...]] = {}
    gguf = (GgufLayout("llama", has_pairs=True),)

    def config(self, hf_config: Mapping[str, Any]) -> ModelConfig:
        fields = decoder_fields(hf_config, self.defaults, self.neutral)
        bias = fields.flag("attention_bias")
        layer = LayerSpec(
            attention(fields, qkv_bias=bias, output_bias=bias), feed_forward(fields, bias=fields.flag("mlp_bias"))
        )
        return model_config(fields, "llama", (layer,) * n_layers(fields))

    def sources(self, config: ModelConfig) -> dict[str, tuple[str, ...]]:
        return decoder_sources(config)


PLUG = Llama()
