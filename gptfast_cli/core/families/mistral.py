"""Mistral 7B, Nemo, Small and Ministral 8B: a Llama whose layers may have a window."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from gptfast_cli.core.config import LayerSpec, ModelConfig
from gptfast_cli.core.errors import UsageError
from gptfast_cli.core.families._decoder import (
    LLAMA,
    attention,
    decoder_fields,
    decoder_sources,
    feed_forward,
    model_config,
    n_layers,
    windows,
)
from gptfast_cli.core.families._gguf import WINDOW, GgufLayout, sliding_window


class Mistral:
    """MistralForCausalLM of transformers: https://huggingface.co/docs/transformers/model_doc/mistral."""

    model_types = ("mistral", "ministral")
    architectures = ("MistralForCausalLM", "MinistralForCausalLM")
    defaults: Mapping[str, Any] = {
        **LLAMA,
        "intermediate_size": 14_336,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131_072,
        "sliding_window": 4096,
    }
    neutral: Mapping[str, tuple[Any, ...]] = {}
    gguf = (
        GgufLayout("llama", {WINDOW: "sliding_window"}, needs=WINDOW, has_pairs=True, changes=sliding_window),
        GgufLayout("mistral3", has_pairs=True, changes=sliding_window),
    )

    def config(self, hf_config: Mapping[str, Any]) -> ModelConfig:
        fields = decoder_fields(hf_config, self.defaults, self.neutral)
        found = windows(fields, lambda _: "sliding_window" in fields)
        alike = (fields.integer("sliding_window") if "sliding_window" in fields else None,) * n_layers(fields)
        if fields.text("model_type", "mistral") == "mistral" and found != alike:
            # transformers does not read them there, and warns
            raise UsageError(f"{fields.where}: layer_types is not supported with model_type mistral.")
        heads, network = attention(fields), feed_forward(fields)
        layers = tuple(LayerSpec(replace(heads, window=window), network) for window in found)
        return model_config(fields, "mistral", layers)

    def sources(self, config: ModelConfig) -> dict[str, tuple[str, ...]]:
        return decoder_sources(config)


PLUG = Mistral()
