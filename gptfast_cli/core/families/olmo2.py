"""OLMo 2: norms after attention and feed-forward, queries and keys normalized over their whole width."""

from collections.abc import Mapping
from typing import Any

from gptfast_cli.core.config import LayerSpec, ModelConfig, NormPlacement, QKNorm
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


class Olmo2:
    """Olmo2ForCausalLM of transformers: https://huggingface.co/docs/transformers/model_doc/olmo2."""

    model_types = ("olmo2",)
    architectures = ("Olmo2ForCausalLM",)
    defaults: Mapping[str, Any] = {
        **LLAMA,
        "vocab_size": 50_304,
        "rms_norm_eps": 1e-5,
    }
    neutral: Mapping[str, tuple[Any, ...]] = {}
    gguf = (GgufLayout("olmo2"),)

    def config(self, hf_config: Mapping[str, Any]) -> ModelConfig:
        fields = decoder_fields(hf_config, self.defaults, self.neutral)
        bias = fields.flag("attention_bias")
        heads = attention(fields, qk_norm=QKNorm.WIDTH, qkv_bias=bias, output_bias=bias)
        layer = LayerSpec(heads, feed_forward(fields), NormPlacement.POST)
        return model_config(fields, "olmo2", (layer,) * n_layers(fields))

    def sources(self, config: ModelConfig) -> dict[str, tuple[str, ...]]:
        return decoder_sources(config)


PLUG = Olmo2()
