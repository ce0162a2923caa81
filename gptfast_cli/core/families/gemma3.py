"""Gemma 3, text: five layers with a window and a RoPE of their own to one without, and QK-norm."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from gptfast_cli.core.config import LayerSpec, ModelConfig, NormPlacement, QKNorm
from gptfast_cli.core.families._decoder import (
    LLAMA,
    attention,
    decoder_fields,
    decoder_sources,
    feed_forward,
    layer_ropes,
    model_config,
    optional,
    windows,
)
from gptfast_cli.core.families._gguf import PATTERN, WINDOW, GgufLayout, GgufModel, HfConfig, layer_types

_GGUF_KEYS = {
    "final_logit_softcapping": "final_logit_softcapping",
    "rope.freq_base_swa": "rope_local_base_freq",
    WINDOW: "sliding_window",
}


def _from_gguf(model: GgufModel, config: HfConfig) -> HfConfig:
    # the scale of scores is not in the file: 27B alone has another than that of the head size
    is_27b = config["num_hidden_layers"] == 62
    size = config["hidden_size"] // config["num_attention_heads"] if is_27b else model.head_dim
    return {"query_pre_attn_scalar": size} | layer_types(model, 6, has_windows=False)


class Gemma3:
    """Gemma3ForCausalLM of transformers: https://huggingface.co/docs/transformers/model_doc/gemma3."""

    model_types = ("gemma3_text",)
    architectures = ("Gemma3ForCausalLM",)
    defaults: Mapping[str, Any] = {
        **LLAMA,
        "vocab_size": 262_208,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "max_position_embeddings": 131_072,
        "tie_word_embeddings": True,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "final_logit_softcapping": None,
        "rope_theta": 1_000_000.0,
        "rope_local_base_freq": 10_000.0,
        "sliding_window_pattern": 6,
    }
    neutral: Mapping[str, tuple[Any, ...]] = {
        "use_bidirectional_attention": (False,),
        "attn_logit_softcapping": (),
        "partial_rotary_factor": (1,),
    }
    gguf = (GgufLayout("gemma3", _GGUF_KEYS, frozenset((PATTERN,)), changes=_from_gguf),)

    def config(self, hf_config: Mapping[str, Any]) -> ModelConfig:
        fields = decoder_fields(hf_config, self.defaults, self.neutral)
        bias = fields.flag("attention_bias")
        heads = attention(
            fields,
            rope=None,
            qkv_bias=bias,
            output_bias=bias,
            scale=fields.number("query_pre_attn_scalar") ** -0.5,
            qk_norm=QKNorm.HEAD,
        )
        sliding, full = layer_ropes(fields, heads.head_dim, fields.number("rope_local_base_freq"))
        network = feed_forward(fields, activation_key="hidden_activation")
        pattern = fields.integer("sliding_window_pattern")
        layers = tuple(
            LayerSpec(replace(heads, window=window, rope=sliding if window else full), network, NormPlacement.BOTH)
            for window in windows(fields, lambda number: (number + 1) % pattern != 0)
        )
        return model_config(
            fields,
            "gemma3",
            layers,
            norm_offset=1.0,
            embedding_scale=fields.integer("hidden_size") ** 0.5,
            logit_softcap=optional(fields, "final_logit_softcapping"),
        )

    def sources(self, config: ModelConfig) -> dict[str, tuple[str, ...]]:
        return decoder_sources(config)


PLUG = Gemma3()
