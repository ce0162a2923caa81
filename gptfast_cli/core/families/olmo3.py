"""OLMo 3: OLMo 2 with a window in three of four layers, and stretched RoPE in the fourth."""

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
    windows,
)
from gptfast_cli.core.families._gguf import PATTERN, WINDOW, GgufLayout, GgufModel, HfConfig, layer_types

_SLIDING_BASE = "rope.freq_base_swa"


def _from_gguf(model: GgufModel, config: HfConfig) -> HfConfig:
    sliding = {"rope_theta": model.keys.get(_SLIDING_BASE, config["rope_theta"])}
    return {"rope_parameters": {"sliding_attention": sliding}} | layer_types(model, 4, has_windows=False)


class Olmo3:
    """Olmo3ForCausalLM of transformers: https://huggingface.co/docs/transformers/model_doc/olmo3."""

    model_types = ("olmo3",)
    architectures = ("Olmo3ForCausalLM",)
    defaults: Mapping[str, Any] = {
        **LLAMA,
        "vocab_size": 50_304,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500_000.0,
        "sliding_window": 4096,
    }
    neutral: Mapping[str, tuple[Any, ...]] = {"partial_rotary_factor": (1,)}
    gguf = (
        GgufLayout(
            "olmo2",
            {WINDOW: "sliding_window"},
            frozenset((_SLIDING_BASE, PATTERN)),
            needs=WINDOW,
            changes=_from_gguf,
        ),
    )

    def config(self, hf_config: Mapping[str, Any]) -> ModelConfig:
        fields = decoder_fields(hf_config, self.defaults, self.neutral)
        bias = fields.flag("attention_bias")
        heads = attention(fields, rope=None, qk_norm=QKNorm.WIDTH, qkv_bias=bias, output_bias=bias)
        sliding, full = layer_ropes(fields, heads.head_dim, self.defaults["rope_theta"])
        network = feed_forward(fields)
        layers = tuple(
            LayerSpec(replace(heads, window=window, rope=sliding if window else full), network, NormPlacement.POST)
            for window in windows(fields, lambda number: (number + 1) % 4 != 0)
        )
        return model_config(fields, "olmo3", layers)

    def sources(self, config: ModelConfig) -> dict[str, tuple[str, ...]]:
        return decoder_sources(config)


PLUG = Olmo3()
