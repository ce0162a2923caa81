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
from gptfast_cli.core.families._gguf import GgufLayout, GgufModel, HfConfig

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

_TEMPERATURE, _LENGTH = "attention.temperature_scale", "attention.temperature_length"


def _query_scaling(model: GgufModel, config: HfConfig) -> HfConfig:
    scaling = {"rope_type": "default", **config.get("rope_scaling", {})}
    original = scaling.get("original_max_position_embeddings")
    if (length := model.keys.get(_LENGTH, original)) != original:
        raise model.refused(_LENGTH, f"{length!r:.40} beside an original context of {original!r:.40}")
    return {"rope_scaling": {**scaling, "llama_4_scaling_beta": model.keys[_TEMPERATURE]}}


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
    gguf = (
        GgufLayout(
            "mistral3",
            reads=frozenset((_TEMPERATURE, _LENGTH)),
            needs=_TEMPERATURE,
            changes=_query_scaling,
            has_pairs=True,
        ),
    )

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
