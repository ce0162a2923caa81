"""What the config.json files of decoders have in common, read where transformers reads it, and the usual tensor names.

RoPE stands in a file in one of two spellings: the older one has `rope_theta` and `rope_scaling`, that of transformers 5
has `rope_parameters`, for all layers or for each type of layer.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, Final

from gptfast_cli.core.config import (
    MOST_LAYERS,
    Activation,
    AttentionSpec,
    FeedForwardSpec,
    LayerSpec,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    ModelConfig,
    NormPlacement,
    ProportionalScaling,
    RopeConfig,
    RopeScaling,
    YarnScaling,
)
from gptfast_cli.core.errors import UsageError
from gptfast_cli.core.fields import Fields

_FILE: Final = "config.json"

LLAMA: Final[Mapping[str, Any]] = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10_000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
}
"""The defaults of LlamaConfig, from which other families differ."""

_NEUTRAL: Final[Mapping[str, tuple[Any, ...]]] = {"is_encoder_decoder": (False,), "per_layer_config": ()}


def decoder_fields(
    hf_config: Mapping[str, Any], defaults: Mapping[str, Any], neutral: Mapping[str, tuple[Any, ...]]
) -> Fields:
    """The fields of a config.json over its family's defaults; null in the file replaces a default.

    Raises UsageError for a key that gptfast does not use and that has a value other than its neutral ones.
    """
    for name, values in {**_NEUTRAL, **neutral}.items():
        value = hf_config.get(name)
        if value is not None and value not in values:
            raise UsageError(f"{_FILE}: {name} {value!r} is not supported.")
    return Fields({**defaults, **hf_config}, _FILE)


def model_config(fields: Fields, family: str, layers: tuple[LayerSpec, ...], **changes: Any) -> ModelConfig:  # noqa: ANN401
    """The model of these layers; `changes` are fields of ModelConfig. Raises CorruptError if it is too large."""
    scalings = [layer.attention.rope.scaling for layer in dict.fromkeys(layers) if layer.attention.rope is not None]
    # longer texts have other frequencies for all of their tokens
    contexts = [scaling.original_context for scaling in scalings if isinstance(scaling, LongRopeScaling)]
    config = ModelConfig(
        family=family,
        layers=layers,
        dim=fields.integer("hidden_size"),
        vocab_size=fields.integer("vocab_size"),
        max_context=min([fields.integer("max_position_embeddings"), *contexts]),
        norm_eps=fields.number("rms_norm_eps"),
        tied_embeddings=fields.flag("tie_word_embeddings"),
        **changes,
    )
    if (why := config.why_too_large()) is not None:
        raise fields.corrupt("hidden_size", f"with the other sizes, {why}")
    return config


def n_layers(fields: Fields) -> int:
    """Number of layers."""
    return fields.integer("num_hidden_layers", maximum=MOST_LAYERS)


def attention(fields: Fields, **changes: Any) -> AttentionSpec:  # noqa: ANN401
    """Heads that are rotated alike in all layers, unless `rope` is among the `changes`: fields of AttentionSpec."""
    dim, n_heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    n_kv_heads = fields.integer("num_key_value_heads", n_heads)
    if n_heads % n_kv_heads:
        raise fields.corrupt("num_key_value_heads", f"{n_heads} query heads cannot share {n_kv_heads}")
    if "head_dim" not in fields and dim % n_heads:
        raise fields.corrupt("num_attention_heads", f"hidden_size {dim} cannot be cut into {n_heads} heads")
    head_dim = fields.integer("head_dim", dim // n_heads)
    if head_dim % 2:
        raise fields.corrupt("head_dim", f"{head_dim} is not an even size: RoPE rotates pairs")
    if "rope" not in changes:
        changes["rope"] = rope(fields, head_dim)
    return AttentionSpec(n_heads, n_kv_heads, head_dim, **changes)


def feed_forward(fields: Fields, *, bias: bool = False, activation_key: str = "hidden_act") -> FeedForwardSpec:
    """The gated feed-forward network."""
    name = fields.text(activation_key)
    if name not in _ACTIVATIONS:
        known = ", ".join(_ACTIVATIONS)
        raise UsageError(f"{_FILE}: {activation_key} {name!r} is not supported.", f"gptfast has {known}.")
    return FeedForwardSpec(fields.integer("intermediate_size"), _ACTIVATIONS[name], bias)


_ACTIVATIONS: Final = {
    "silu": Activation.SILU,
    "swish": Activation.SILU,
    "gelu_pytorch_tanh": Activation.GELU_TANH,
    "gelu_new": Activation.GELU_TANH,
    "gelu_python_tanh": Activation.GELU_TANH,
    "gelu_fast": Activation.GELU_TANH,
    "gelu_accurate": Activation.GELU_TANH,
}
"""By the name in transformers; the last ones are the same function in other words."""


def optional(fields: Fields, name: str) -> float | None:
    """A number, or None where the file says null."""
    return fields.number(name) if name in fields else None


SLIDING, FULL = "sliding_attention", "full_attention"


def windows(fields: Fields, is_sliding: Callable[[int], bool]) -> tuple[int | None, ...]:
    """The window of each layer: `layer_types` says which have one, and where it is missing `is_sliding(number)`."""
    if "layer_types" not in fields:
        kinds = tuple(SLIDING if is_sliding(number) else FULL for number in range(n_layers(fields)))
    else:
        kinds = fields.texts("layer_types")
        if len(kinds) != n_layers(fields):
            raise fields.corrupt("layer_types", f"has {len(kinds)}, and num_hidden_layers is {n_layers(fields)}")
    if unknown := sorted(set(kinds) - {SLIDING, FULL}):
        raise UsageError(f"{_FILE}: layer_types {unknown[0]!r} is not supported.", f"gptfast has {FULL}, {SLIDING}.")
    return tuple(fields.integer("sliding_window") if kind == SLIDING else None for kind in kinds)


def upper_windows(fields: Fields) -> tuple[int | None, ...]:
    """The windows of Qwen: of the layers from `max_window_layers` on, where `use_sliding_window` turns them on."""
    is_on = fields.flag("use_sliding_window")
    first = fields.integer("max_window_layers", minimum=0)
    found = windows(fields, lambda number: is_on and "sliding_window" in fields and number >= first)
    if any(found) and not is_on:
        raise fields.corrupt("layer_types", f"has {SLIDING}, and use_sliding_window is false")
    return found


_ROPE_KEYS: Final = frozenset({
    *("rope_type", "type", "rope_theta", "partial_rotary_factor", "factor", "original_max_position_embeddings"),
    *("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
    *("short_factor", "long_factor", "low_freq_factor", "high_freq_factor"),
})  # fmt: skip


def rope(fields: Fields, head_dim: int, **options: Any) -> RopeConfig:  # noqa: ANN401
    """The RoPE of all layers; `options` are those of `rope_config`."""
    section = rope_section(fields)
    outer = {name: fields.values[name] for name in ("rope_theta", "partial_rotary_factor") if name in fields}
    values = {**outer, **section.values}
    if "original_max_position_embeddings" in fields:  # here the outer one wins, as in transformers
        values["original_max_position_embeddings"] = fields.values["original_max_position_embeddings"]
    return rope_config(Fields(values, section.where), fields, head_dim, **options)


def layer_ropes(fields: Fields, head_dim: int, sliding_theta: float) -> tuple[RopeConfig, RopeConfig]:
    """The RoPE of layers with a window and of those without; the older spelling stretches the latter's alone.

    sliding_theta: base of the former where their parameters have none; of the latter it is `rope_theta`
    """
    section = fields.section("rope_parameters") if "rope_parameters" in fields else Fields({}, _FILE)
    for name in set(section) - {SLIDING, FULL}:
        if name in section:
            raise UsageError(f"{section.where}: {name} is not supported beside parameters of each type of layer.")
    full = dict(section.section(FULL).values) if FULL in section else {}
    full |= fields.section("rope_scaling").values if "rope_scaling" in fields else {}
    sliding = section.section(SLIDING).values if SLIDING in section else {}
    if any(values.get("truncate") is False for values in (full, sliding)):
        raise UsageError(f"{section.where}: truncate is not supported in parameters of a type of layer.")
    return (
        rope_config(Fields({"rope_theta": sliding_theta, **sliding}, f"{section.where}.{SLIDING}"), fields, head_dim),
        rope_config(
            Fields({"rope_theta": fields.number("rope_theta"), **full}, f"{section.where}.{FULL}"), fields, head_dim
        ),
    )


def rope_section(fields: Fields) -> Fields:
    """The RoPE parameters of a file, in whichever spelling; the older wins where a file has both."""
    spelling = next((name for name in ("rope_scaling", "rope_parameters") if fields.values.get(name)), None)
    return Fields({}, _FILE) if spelling is None else fields.section(spelling)


def rope_config(
    values: Fields,
    fields: Fields,
    head_dim: int,
    *,
    is_partial: bool = False,
    known_keys: frozenset[str] = frozenset(),
    kinds: Mapping[str, str] | None = None,
) -> RopeConfig:
    """RoPE by its parameters, `rope_theta` among them; `fields` are those of the whole file.

    is_partial: whether the family rotates a part of each head where a file says so
    known_keys: keys beside it that the caller reads
    kinds:      values of rope_type in this family, and what they mean; None: all, by their names
    """
    for name in set(values) - _ROPE_KEYS - known_keys:
        if name in values:
            raise UsageError(f"{values.where}: {name} is not supported.")
    kinds = {name: name for name in _SCALINGS} if kinds is None else kinds
    spelled = values.text("rope_type", values.text("type", "default"))
    if spelled not in kinds:
        raise UsageError(
            f"{values.where}: RoPE type {spelled!r} is not supported.",
            f"gptfast has {', '.join(kinds)} RoPE; pick a model that uses one of them.",
        )
    kind = kinds[spelled]
    fraction = values.number("partial_rotary_factor", 1.0)
    rotary_dim = head_dim if kind == "proportional" else int(head_dim * fraction)
    if fraction > 1 or rotary_dim % 2 or not rotary_dim:
        raise values.corrupt("partial_rotary_factor", f"{fraction} of {head_dim} elements are no pairs")
    if rotary_dim != head_dim and not is_partial:
        raise UsageError(f"{_FILE}: partial_rotary_factor is not supported: this family rotates whole heads.")
    scaling = _SCALINGS[kind](values, fields.integer("max_position_embeddings"), rotary_dim)
    theta = values.number("rope_theta")
    if isinstance(scaling, YarnScaling) and theta <= 1:
        raise values.corrupt("rope_theta", f"{theta} is not above 1")
    return RopeConfig(theta, scaling, None if rotary_dim == head_dim else rotary_dim)


def _dynamic(values: Fields, _max_context: int, _rotary_dim: int) -> None:
    """Frequencies as they are: this kind changes those of longer texts than `max_context`, which are refused."""
    values.number("factor")


def _linear(values: Fields, _max_context: int, _rotary_dim: int) -> LinearScaling:
    return LinearScaling(values.number("factor"))


def _llama3(values: Fields, max_context: int, _rotary_dim: int) -> Llama3Scaling:
    low, high = values.number("low_freq_factor"), values.number("high_freq_factor")
    if high <= low:
        raise values.corrupt("high_freq_factor", f"{high} is not above low_freq_factor {low}")
    return Llama3Scaling(values.number("factor"), low, high, original_context(values, max_context))


def original_context(values: Fields, max_context: int) -> int:
    """Tokens of the context before it was stretched."""
    return values.integer("original_max_position_embeddings", max_context)


def _yarn(values: Fields, max_context: int, _rotary_dim: int) -> YarnScaling:
    original = original_context(values, max_context)
    factor = values.number("factor", max_context / original)

    def magnitude(scale: float) -> float:
        return 0.1 * scale * math.log(factor) + 1 if factor > 1 else 1.0

    ratio = magnitude(1.0)
    if all(values.values.get(name) for name in ("mscale", "mscale_all_dim")):
        ratio = magnitude(values.number("mscale")) / magnitude(values.number("mscale_all_dim"))
    return YarnScaling(
        factor,
        original,
        beta_fast=values.number("beta_fast", 32.0),
        beta_slow=values.number("beta_slow", 1.0),
        attention_factor=values.number("attention_factor", ratio),
        is_rounded=values.flag("truncate", default=True),
    )


def _longrope(values: Fields, max_context: int, rotary_dim: int) -> LongRopeScaling:
    original = original_context(values, max_context)
    factors = {name: values.numbers(name) for name in ("short_factor", "long_factor")}
    for name, of_pairs in factors.items():
        if len(of_pairs) != rotary_dim // 2:
            raise values.corrupt(name, f"has {len(of_pairs)} factors for {rotary_dim // 2} pairs")
    factor = values.number("factor", max_context / original)
    growth = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 < original else 1.0
    attention_factor = values.number("attention_factor", growth)
    short, long = factors.values()
    return LongRopeScaling(short, long, original, max(original, max_context), attention_factor)


def _proportional(values: Fields, _max_context: int, rotary_dim: int) -> ProportionalScaling:
    n_rotated = int(values.number("partial_rotary_factor", 1.0) * rotary_dim // 2)
    return ProportionalScaling(n_rotated, values.number("factor", 1.0))


_SCALINGS: Final[Mapping[str, Callable[[Fields, int, int], RopeScaling | None]]] = {
    "default": lambda _values, _max_context, _rotary_dim: None,
    "linear": _linear,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
    "proportional": _proportional,
}


def decoder_sources(config: ModelConfig) -> dict[str, tuple[str, ...]]:
    """Tensor names of most decoders in transformers."""
    qkv = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    return _sources(config, qkv, ("mlp.gate_proj", "mlp.up_proj"))


def fused_sources(config: ModelConfig) -> dict[str, tuple[str, ...]]:
    """The same of a decoder whose files have the matrices that read the same input in one tensor, as we do."""
    return _sources(config, ("self_attn.qkv_proj",), ("mlp.gate_up_proj",))


def _sources(config: ModelConfig, qkv: tuple[str, ...], gate_up: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    linears = {"qkv": qkv, "attention_output": ("self_attn.o_proj",), "gate_up": gate_up, "down": ("mlp.down_proj",)}
    sources: dict[str, tuple[str, ...]] = {"embedding": ("model.embed_tokens.weight",)}
    for number, layer in enumerate(config.layers):
        modules = linears | {name: (norm,) for name, norm in _norms(layer).items()}
        parts = {name: tuple(f"{module}.weight" for module in modules[name]) for name in modules}
        parts |= {f"{name}_bias": tuple(f"{module}.bias" for module in linears[name]) for name in _biases(layer)}
        for name, tensors in parts.items():
            sources[f"layers.{number}.{name}"] = tuple(f"model.layers.{number}.{tensor}" for tensor in tensors)
    sources["norm"] = ("model.norm.weight",)
    if not config.tied_embeddings:
        sources["head"] = ("lm_head.weight",)
    return sources


def _norms(layer: LayerSpec) -> dict[str, str]:
    norms = {"q_norm": "self_attn.q_norm", "k_norm": "self_attn.k_norm"} if layer.attention.qk_norm else {}
    match layer.norms:
        case NormPlacement.PRE:
            return norms | {"attention_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
        case NormPlacement.POST:
            return norms | {
                "attention_output_norm": "post_attention_layernorm",
                "ffn_output_norm": "post_feedforward_layernorm",
            }
        case NormPlacement.BOTH:
            return norms | {
                "attention_norm": "input_layernorm",
                "attention_output_norm": "post_attention_layernorm",
                "ffn_norm": "pre_feedforward_layernorm",
                "ffn_output_norm": "post_feedforward_layernorm",
            }


def _biases(layer: LayerSpec) -> tuple[str, ...]:
    has_bias = {
        "qkv": layer.attention.qkv_bias,
        "attention_output": layer.attention.output_bias,
        "gate_up": layer.feed_forward.bias,
        "down": layer.feed_forward.bias,
    }
    return tuple(name for name in has_bias if has_bias[name])
