"""The JSON form of a ModelConfig as a manifest holds it: fields by their names, RoPE scaling tagged by type."""

from dataclasses import asdict
from typing import Any

from gptfast_cli.core.config import LinearScaling, Llama3Scaling, ModelConfig, RopeConfig
from gptfast_cli.core.fields import Fields


def config_to_json(config: ModelConfig) -> dict[str, Any]:
    """The config as JSON values; `config_from_json` reads them back to an equal config."""
    form = asdict(config)
    match config.rope.scaling:
        case LinearScaling():
            form["rope"]["scaling"] = {"type": "linear"} | form["rope"]["scaling"]
        case Llama3Scaling():
            form["rope"]["scaling"] = {"type": "llama3"} | form["rope"]["scaling"]
    return form


def config_from_json(fields: Fields) -> ModelConfig:
    """The config that a manifest's `config` object describes; raises CorruptError with the field that is wrong."""
    n_heads, n_kv_heads = fields.integer("n_heads"), fields.integer("n_kv_heads")
    if n_heads % n_kv_heads:
        raise fields.corrupt("n_kv_heads", f"{n_heads} query heads cannot share {n_kv_heads}")
    return ModelConfig(
        family=fields.text("family"),
        n_layers=fields.integer("n_layers", maximum=10_000),
        dim=fields.integer("dim"),
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=fields.integer("head_dim"),
        ffn_dim=fields.integer("ffn_dim"),
        vocab_size=fields.integer("vocab_size"),
        max_context=fields.integer("max_context"),
        norm_eps=fields.number("norm_eps"),
        rope=_rope(fields.section("rope")),
        tied_embeddings=fields.flag("tied_embeddings"),
        attention_bias=fields.flag("attention_bias"),
        ffn_bias=fields.flag("ffn_bias"),
    )


def _rope(rope: Fields) -> RopeConfig:
    theta = rope.number("theta")
    if "scaling" not in rope:
        return RopeConfig(theta)
    scaling = rope.section("scaling")
    match scaling.text("type"):
        case "linear":
            return RopeConfig(theta, LinearScaling(scaling.number("factor")))
        case "llama3":
            return RopeConfig(
                theta,
                Llama3Scaling(
                    factor=scaling.number("factor"),
                    low_freq_factor=scaling.number("low_freq_factor"),
                    high_freq_factor=scaling.number("high_freq_factor"),
                    original_context=scaling.integer("original_context"),
                ),
            )
        case other:
            raise scaling.corrupt("type", f"{other!r} is no RoPE scaling that this version knows")
