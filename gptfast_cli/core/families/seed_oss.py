"""Seed-OSS: a Llama with biases of queries, keys and values, and heads of a size of their own."""

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


class SeedOss:
    """SeedOssForCausalLM of transformers: https://huggingface.co/docs/transformers/model_doc/seed_oss."""

    model_types = ("seed_oss",)
    architectures = ("SeedOssForCausalLM",)
    defaults: Mapping[str, Any] = {
        **LLAMA,
        "vocab_size": 155_136,
        "intermediate_size": 27_648,
        "num_hidden_layers": 64,
        "num_attention_heads": 80,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 524_288,
        "attention_bias": True,
        "attention_out_bias": False,
    }
    neutral: Mapping[str, tuple[Any, ...]] = {}
    gguf = (
        GgufLayout(
            "seed_oss",
            names={"ffn_norm": "post_attention_norm"},
            changes=lambda model, _config: {"attention_out_bias": "blk.0.attn_output.bias" in model.shapes},
        ),
    )

    def config(self, hf_config: Mapping[str, Any]) -> ModelConfig:
        fields = decoder_fields(hf_config, self.defaults, self.neutral)
        heads = attention(fields, qkv_bias=fields.flag("attention_bias"), output_bias=fields.flag("attention_out_bias"))
        layer = LayerSpec(heads, feed_forward(fields, bias=fields.flag("mlp_bias")))
        return model_config(fields, "seed_oss", (layer,) * n_layers(fields))

    def sources(self, config: ModelConfig) -> dict[str, tuple[str, ...]]:
        return decoder_sources(config)


PLUG = SeedOss()
