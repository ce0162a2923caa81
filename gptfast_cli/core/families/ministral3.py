"""Ministral 3: a Mistral with YaRN, whose queries are scaled by their position."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from gptfast_cli.core.config import LayerSpec, ModelConfig, QueryScaling
from gptfast_cli.core.families._decoder import (
    LLAMA,
    attention,
    decoder_fields,
    decoder_sources,
    feed_forward,
    model_config,
    n_layers,
    rope,
    rope_section,
)

_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 1_000_000.0,
    "factor": 16.0,
    "original_max_position_embeddings": 16_384,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
}
_KNOWN = frozenset({"llama_4_scaling_beta", "max_position_embeddings"})  # of which the second changes nothing


class Ministral3:
    """Ministral3ForCausalLM of transformers: https://huggingface.co/docs/transformers/model_doc/ministral3."""

    model_types = ("ministral3",)
    architectures = ("Ministral3ForCausalLM",)
    defaults: Mapping[str, Any] = {
        **LLAMA,
        "vocab_size": 131_072,
        "intermediate_size": 14_336,
        "num_hidden_layers": 34,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 262_144,
        "rms_norm_eps": 1e-5,
        "sliding_window": None,
        "rope_parameters": _ROPE,
    }
    neutral: Mapping[str, tuple[Any, ...]] = {}

    def config(self, hf_config: Mapping[str, Any]) -> ModelConfig:
        fields = decoder_fields(hf_config, self.defaults, self.neutral)
        parameters = rope_section(fields)
        beta = parameters.number("llama_4_scaling_beta", minimum=0)
        heads = attention(fields, rope=None)
        rotation = rope(fields, heads.head_dim, known_keys=_KNOWN)
        original = parameters.integer("original_max_position_embeddings", fields.integer("max_position_embeddings"))
        original = fields.integer("original_max_position_embeddings", original)
        heads = replace(
            heads,
            rope=rotation,
            window=fields.integer("sliding_window") if "sliding_window" in fields else None,
            query_scaling=QueryScaling(beta, original) if beta else None,
        )
        return model_config(fields, "ministral3", (LayerSpec(heads, feed_forward(fields)),) * n_layers(fields))

    def sources(self, config: ModelConfig) -> dict[str, tuple[str, ...]]:
        return decoder_sources(config)


PLUG = Ministral3()
