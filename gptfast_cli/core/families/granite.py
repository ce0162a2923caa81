"""Granite 3, dense: a Llama with a factor each of embedding, residuals, scores and logits."""

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
from gptfast_cli.core.families._gguf import GgufLayout, GgufModel, HfConfig

_ROTATES = "rope.scaling.finetuned"
_GGUF_KEYS = {
    "attention.scale": "attention_multiplier",
    "embedding_scale": "embedding_multiplier",
    "residual_scale": "residual_multiplier",
    "logit_scale": "logits_scaling",
}


def _from_gguf(model: GgufModel, _config: HfConfig) -> HfConfig:
    if model.keys.get(_ROTATES) is False:
        raise model.refused(_ROTATES, "false, which turns RoPE off,")
    return {} if model.keys.get("attention.scale") else {"attention_multiplier": model.head_dim**-0.5}


class Granite:
    """GraniteForCausalLM of transformers: https://huggingface.co/docs/transformers/model_doc/granite."""

    model_types = ("granite",)
    architectures = ("GraniteForCausalLM",)
    defaults: Mapping[str, Any] = {
        **LLAMA,
        "embedding_multiplier": 1.0,
        "residual_multiplier": 1.0,
        "attention_multiplier": 1.0,
        "logits_scaling": 1.0,
    }
    neutral: Mapping[str, tuple[Any, ...]] = {}
    gguf = (GgufLayout("granite", _GGUF_KEYS, has_pairs=True, changes=_from_gguf),)

    def config(self, hf_config: Mapping[str, Any]) -> ModelConfig:
        fields = decoder_fields(hf_config, self.defaults, self.neutral)
        bias = fields.flag("attention_bias")
        heads = attention(fields, qkv_bias=bias, output_bias=bias, scale=fields.number("attention_multiplier"))
        network = feed_forward(fields, bias=fields.flag("mlp_bias"))
        layer = LayerSpec(heads, network, residual_scale=fields.number("residual_multiplier"))
        return model_config(
            fields,
            "granite",
            (layer,) * n_layers(fields),
            embedding_scale=fields.number("embedding_multiplier"),
            logit_scale=1 / fields.number("logits_scaling"),
        )

    def sources(self, config: ModelConfig) -> dict[str, tuple[str, ...]]:
        return decoder_sources(config)


PLUG = Granite()
