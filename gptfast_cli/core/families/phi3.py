"""Phi-3, Phi-3.5 and Phi-4: fused matrices, LongRoPE, heads of which a part may be rotated."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from gptfast_cli.core.config import LayerSpec, ModelConfig
from gptfast_cli.core.families._decoder import (
    LLAMA,
    attention,
    decoder_fields,
    feed_forward,
    fused_sources,
    model_config,
    n_layers,
    rope,
)
from gptfast_cli.core.families._gguf import WINDOW, GgufLayout, sliding_window

_KINDS = {"default": "default", "longrope": "longrope", "su": "longrope", "yarn": "longrope"}  # with the older names


class Phi3:
    """Phi3ForCausalLM of transformers: https://huggingface.co/docs/transformers/model_doc/phi3."""

    model_types = ("phi3",)
    architectures = ("Phi3ForCausalLM",)
    defaults: Mapping[str, Any] = {
        **LLAMA,
        "vocab_size": 32_064,
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "max_position_embeddings": 4096,
        "original_max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "sliding_window": None,
    }
    neutral: Mapping[str, tuple[Any, ...]] = {}
    gguf = (GgufLayout("phi3", {WINDOW: "sliding_window"}, changes=sliding_window),)

    def config(self, hf_config: Mapping[str, Any]) -> ModelConfig:
        fields = decoder_fields(hf_config, self.defaults, self.neutral)
        heads = attention(fields, rope=None)
        heads = replace(
            heads,
            rope=rope(fields, heads.head_dim, is_partial=True, kinds=_KINDS),
            window=fields.integer("sliding_window") if "sliding_window" in fields else None,
        )
        return model_config(fields, "phi3", (LayerSpec(heads, feed_forward(fields)),) * n_layers(fields))

    def sources(self, config: ModelConfig) -> dict[str, tuple[str, ...]]:
        return fused_sources(config)


PLUG = Phi3()
