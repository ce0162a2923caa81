"""The Llama family: Llama 1, 2, 3, 3.1 and 3.2, CodeLlama, OpenLLaMA, TinyLlama and every other shape of theirs.

`config.json` is read in both spellings: the older one with `rope_theta` and `rope_scaling`, and the one of
transformers 5 with `rope_parameters`. What a file leaves out is what transformers' LlamaConfig takes for it.
"""

from collections.abc import Mapping
from typing import Any

from gptfast_cli.core.config import (
    MOST_LAYERS,
    LayerSpec,
    LinearScaling,
    Llama3Scaling,
    LlamaSizes,
    ModelConfig,
    RopeConfig,
)
from gptfast_cli.core.errors import UsageError
from gptfast_cli.core.fields import Fields

_FILE = "config.json"


class Llama:
    """LlamaForCausalLM of transformers: https://huggingface.co/docs/transformers/model_doc/llama."""

    architectures = ("LlamaForCausalLM",)

    def config(self, hf_config: Mapping[str, Any]) -> ModelConfig:
        fields = Fields(hf_config, _FILE)
        _refuse_what_we_lack(fields)
        dim, n_heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
        max_context = fields.integer("max_position_embeddings", 2048)
        config = LlamaSizes(
            n_layers=fields.integer("num_hidden_layers", maximum=MOST_LAYERS),
            dim=dim,
            n_heads=n_heads,
            n_kv_heads=_n_kv_heads(fields, n_heads),
            head_dim=_head_dim(fields, dim, n_heads),
            ffn_dim=fields.integer("intermediate_size"),
            vocab_size=fields.integer("vocab_size"),
            max_context=max_context,
            norm_eps=fields.number("rms_norm_eps", 1e-6),
            rope=_rope(fields, max_context),
            tied_embeddings=fields.flag("tie_word_embeddings", default=False),
            attention_bias=fields.flag("attention_bias", default=False),
            ffn_bias=fields.flag("mlp_bias", default=False),
        ).config()
        if (why := config.why_too_large()) is not None:
            raise fields.corrupt("hidden_size", f"with the other sizes, {why}")
        return config

    def sources(self, config: ModelConfig) -> dict[str, tuple[str, ...]]:
        sources: dict[str, tuple[str, ...]] = {"embedding": ("model.embed_tokens.weight",)}
        for number, layer in enumerate(config.layers):
            for name, parts in _layer_sources(layer).items():
                sources[f"layers.{number}.{name}"] = tuple(f"model.layers.{number}.{part}" for part in parts)
        sources["norm"] = ("model.norm.weight",)
        if not config.tied_embeddings:
            sources["head"] = ("lm_head.weight",)
        return sources


def _refuse_what_we_lack(fields: Fields) -> None:
    activation = fields.text("hidden_act", "silu")
    if activation != "silu":
        raise UsageError(f"{_FILE}: hidden_act {activation!r} is not supported: gptfast has silu for Llama models.")
    if "partial_rotary_factor" in fields and fields.number("partial_rotary_factor") != 1:
        raise UsageError(f"{_FILE}: partial_rotary_factor is not supported: gptfast rotates whole heads.")


def _n_kv_heads(fields: Fields, n_heads: int) -> int:
    n_kv_heads = fields.integer("num_key_value_heads", n_heads)
    if n_heads % n_kv_heads:
        raise fields.corrupt("num_key_value_heads", f"{n_heads} query heads cannot share {n_kv_heads}")
    return n_kv_heads


def _head_dim(fields: Fields, dim: int, n_heads: int) -> int:
    if "head_dim" not in fields and dim % n_heads:
        raise fields.corrupt("num_attention_heads", f"hidden_size {dim} cannot be cut into {n_heads} heads")
    head_dim = fields.integer("head_dim", dim // n_heads)
    if head_dim % 2:
        raise fields.corrupt("head_dim", f"{head_dim} is not an even size: RoPE rotates pairs")
    return head_dim


def _rope(fields: Fields, max_context: int) -> RopeConfig:
    # transformers lets the older spelling win where a file has both
    spelling = next((name for name in ("rope_scaling", "rope_parameters") if name in fields), None)
    rope = fields.section(spelling) if spelling else Fields({}, _FILE)
    theta = rope.number("rope_theta", fields.number("rope_theta", 10_000.0))
    kind = rope.text("rope_type", rope.text("type", "default"))
    match kind:
        case "default":
            return RopeConfig(theta)
        case "linear":
            return RopeConfig(theta, LinearScaling(rope.number("factor")))
        case "llama3":
            return RopeConfig(theta, _llama3_scaling(rope, max_context))
        case _:
            raise UsageError(
                f"{_FILE}: RoPE type {kind!r} is not supported.",
                "gptfast has default, linear and llama3 RoPE; pick a model that uses one of them.",
            )


def _llama3_scaling(rope: Fields, max_context: int) -> Llama3Scaling:
    low, high = rope.number("low_freq_factor"), rope.number("high_freq_factor")
    if high <= low:
        raise rope.corrupt("high_freq_factor", f"{high} is not above low_freq_factor {low}")
    original_context = rope.integer("original_max_position_embeddings", max_context)
    return Llama3Scaling(rope.number("factor"), low, high, original_context)


def _layer_sources(layer: LayerSpec) -> dict[str, tuple[str, ...]]:
    fused = {
        "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "attention_output": ("self_attn.o_proj",),
        "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
        "down": ("mlp.down_proj",),
    }
    sources: dict[str, tuple[str, ...]] = {
        "attention_norm": ("input_layernorm.weight",),
        "ffn_norm": ("post_attention_layernorm.weight",),
    }
    has_bias = {
        "qkv": layer.attention.qkv_bias,
        "attention_output": layer.attention.output_bias,
        "gate_up": layer.feed_forward.bias,
        "down": layer.feed_forward.bias,
    }
    for name, modules in fused.items():
        sources[name] = tuple(f"{module}.weight" for module in modules)
        if has_bias[name]:
            sources[f"{name}_bias"] = tuple(f"{module}.bias" for module in modules)
    return sources


PLUG = Llama()
