"""SmolLM3: every fourth layer does not rotate queries and keys (NoPE)."""

from collections.abc import Mapping
from dataclasses import replace
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
    windows,
)
from gptfast_cli.core.families._gguf import GgufLayout
from gptfast_cli.core.fields import Fields


class SmolLM3:
    """SmolLM3ForCausalLM of transformers: https://huggingface.co/docs/transformers/model_doc/smollm3."""

    model_types = ("smollm3",)
    architectures = ("SmolLM3ForCausalLM",)
    defaults: Mapping[str, Any] = {
        **LLAMA,
        "vocab_size": 128_256,
        "hidden_size": 2048,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "max_position_embeddings": 32_768,
        "rope_theta": 2_000_000.0,
        "use_sliding_window": False,
        "no_rope_layer_interval": 4,
        "tie_word_embeddings": True,
    }
    neutral: Mapping[str, tuple[Any, ...]] = {}
    gguf = (GgufLayout("smollm3", has_pairs=True),)

    def config(self, hf_config: Mapping[str, Any]) -> ModelConfig:
        fields = decoder_fields(hf_config, self.defaults, self.neutral)
        bias = fields.flag("attention_bias")
        heads = attention(fields, qkv_bias=bias, output_bias=bias)
        network = feed_forward(fields, bias=fields.flag("mlp_bias"))
        is_rotated = self._rotated(fields)
        has_windows = fields.flag("use_sliding_window") and "sliding_window" in fields
        found = windows(fields, lambda number: has_windows and not is_rotated[number])
        layers = tuple(
            LayerSpec(replace(heads, window=window, rope=heads.rope if rotated else None), network)
            for window, rotated in zip(found, is_rotated, strict=True)
        )
        return model_config(fields, "smollm3", layers)

    def _rotated(self, fields: Fields) -> tuple[bool, ...]:
        """Whether each layer rotates queries and keys: its number in `no_rope_layers` is not 0."""
        if "no_rope_layers" not in fields:
            interval = fields.integer("no_rope_layer_interval")
            return tuple((number + 1) % interval != 0 for number in range(n_layers(fields)))
        flags = fields.integers("no_rope_layers")
        if len(flags) != n_layers(fields):
            raise fields.corrupt("no_rope_layers", f"has {len(flags)}, and num_hidden_layers is {n_layers(fields)}")
        return tuple(map(bool, flags))

    def sources(self, config: ModelConfig) -> dict[str, tuple[str, ...]]:
        return decoder_sources(config)


PLUG = SmolLM3()
