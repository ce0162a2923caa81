"""Gemma 2: norms before and after, softcaps, every other layer with a window."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from gptfast_cli.core.config import LayerSpec, ModelConfig, NormPlacement
from gptfast_cli.core.families._decoder import (
    LLAMA,
    attention,
    decoder_fields,
    decoder_sources,
    feed_forward,
    model_config,
    optional,
    windows,
)
from gptfast_cli.core.families._gguf import PATTERN, WINDOW, GgufLayout, GgufModel, HfConfig, layer_types

_GGUF_KEYS = {
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    WINDOW: "sliding_window",
}


def _from_gguf(model: GgufModel, config: HfConfig) -> HfConfig:
    # the scale of scores is not in the file: 27B alone has another than that of the head size
    is_27b = config["num_hidden_layers"] == 46
    size = config["hidden_size"] // config["num_attention_heads"] if is_27b else model.head_dim
    return {"query_pre_attn_scalar": size} | layer_types(model, 2, has_windows=True)


class Gemma2:
    """Gemma2ForCausalLM of transformers: https://huggingface.co/docs/transformers/model_doc/gemma2."""

    model_types = ("gemma2",)
    architectures = ("Gemma2ForCausalLM",)
    defaults: Mapping[str, Any] = {
        **LLAMA,
        "vocab_size": 256_000,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    }
    neutral: Mapping[str, tuple[Any, ...]] = {"use_bidirectional_attention": (False,)}
    gguf = (GgufLayout("gemma2", _GGUF_KEYS, frozenset((PATTERN,)), changes=_from_gguf),)

    def config(self, hf_config: Mapping[str, Any]) -> ModelConfig:
        fields = decoder_fields(hf_config, self.defaults, self.neutral)
        bias = fields.flag("attention_bias")
        heads = attention(
            fields,
            qkv_bias=bias,
            output_bias=bias,
            scale=fields.number("query_pre_attn_scalar") ** -0.5,
            softcap=optional(fields, "attn_logit_softcapping"),
        )
        network = feed_forward(fields, activation_key="hidden_activation")
        found = windows(fields, lambda number: number % 2 == 0)
        layers = tuple(LayerSpec(replace(heads, window=window), network, NormPlacement.BOTH) for window in found)
        return model_config(
            fields,
            "gemma2",
            layers,
            norm_offset=1.0,
            embedding_scale=fields.integer("hidden_size") ** 0.5,
            logit_softcap=optional(fields, "final_logit_softcapping"),
        )

    def sources(self, config: ModelConfig) -> dict[str, tuple[str, ...]]:
        return decoder_sources(config)


PLUG = Gemma2()
