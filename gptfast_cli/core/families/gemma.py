"""Gemma: zero-centred norms, GELU, a scaled embedding."""

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
from gptfast_cli.core.fields import Fields


class Gemma:
    """GemmaForCausalLM of transformers: https://huggingface.co/docs/transformers/model_doc/gemma."""

    model_types = ("gemma",)
    architectures = ("GemmaForCausalLM",)
    defaults: Mapping[str, Any] = {
        **LLAMA,
        "vocab_size": 256_000,
        "hidden_size": 3072,
        "intermediate_size": 24_576,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "head_dim": 256,
        "hidden_act": "gelu_pytorch_tanh",
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    }
    neutral: Mapping[str, tuple[Any, ...]] = {"use_bidirectional_attention": (False,)}
    gguf = (GgufLayout("gemma"),)

    def config(self, hf_config: Mapping[str, Any]) -> ModelConfig:
        fields = decoder_fields(hf_config, self.defaults, self.neutral)
        if fields.text("hidden_act") == "gelu":  # of the first files, which mean the approximation by tanh
            fields = Fields({**fields.values, "hidden_act": "gelu_pytorch_tanh"}, fields.where)
        bias = fields.flag("attention_bias")
        layer = LayerSpec(attention(fields, qkv_bias=bias, output_bias=bias), feed_forward(fields))
        layers = (layer,) * n_layers(fields)
        scale = fields.integer("hidden_size") ** 0.5
        return model_config(fields, "gemma", layers, norm_offset=1.0, embedding_scale=scale)

    def sources(self, config: ModelConfig) -> dict[str, tuple[str, ...]]:
        return decoder_sources(config)


PLUG = Gemma()
