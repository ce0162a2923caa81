"""config.json in both spellings becomes the shape that transformers makes of it, or an error that names the field."""

from typing import Any

import pytest
from transformers import LlamaConfig

from gptfast_cli.core.config import LinearScaling, Llama3Scaling, ModelConfig, RopeConfig
from gptfast_cli.core.errors import CorruptError, UsageError
from gptfast_cli.core.families import families
from gptfast_cli.core.families.llama import Llama
from gptfast_cli.core.models.weights import weight_shapes
from llama_oracle import SHAPES, random_llama

SMALLEST = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 70,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}


def rope_of(config: ModelConfig) -> RopeConfig:
    (kind,) = config.kinds
    assert kind.attention.rope is not None
    return kind.attention.rope


def read(**changes: Any) -> ModelConfig:
    return Llama().config({**SMALLEST, **changes})


@pytest.mark.parametrize("shape", SHAPES)
def test_a_config_of_transformers_is_read_as_transformers_means_it(shape: str) -> None:
    theirs = random_llama(**SHAPES[shape]).config
    ours = Llama().config(theirs.to_dict())
    attention = ours.layers[0].attention
    assert (attention.n_heads, attention.n_kv_heads, attention.head_dim) == (
        theirs.num_attention_heads,
        theirs.num_key_value_heads,
        theirs.head_dim,
    )
    assert (ours.dim, ours.layers[0].feed_forward.dim, ours.n_layers) == (
        theirs.hidden_size,
        theirs.intermediate_size,
        theirs.num_hidden_layers,
    )
    assert (ours.norm_eps, ours.max_context) == (theirs.rms_norm_eps, theirs.max_position_embeddings)
    assert rope_of(ours).theta == theirs.rope_parameters["rope_theta"]


@pytest.mark.parametrize("changes", [*SHAPES.values(), {"attention_bias": True}, {"mlp_bias": True}])
def test_the_sources_are_exactly_the_tensors_that_transformers_saves(changes: dict[str, Any]) -> None:
    model = random_llama(**changes)
    config = Llama().config(model.config.to_dict())
    sources = [tensor for tensors in Llama().sources(config).values() for tensor in tensors]
    tied = {"lm_head.weight"} if config.tied_embeddings else set()
    assert sorted(sources) == sorted(set(model.state_dict()) - tied)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_weight_of_the_model_has_its_sources(shape: str) -> None:
    config = Llama().config(random_llama(**SHAPES[shape]).config.to_dict())
    assert set(Llama().sources(config)) == set(weight_shapes(config))


def test_what_a_file_leaves_out_is_what_transformers_takes_for_it() -> None:
    ours, theirs = read(), LlamaConfig(**SMALLEST)
    attention = ours.layers[0].attention
    assert (attention.n_kv_heads, attention.head_dim) == (theirs.num_key_value_heads, theirs.head_dim)
    assert (ours.norm_eps, ours.max_context) == (theirs.rms_norm_eps, theirs.max_position_embeddings)
    assert rope_of(ours).theta == theirs.rope_parameters["rope_theta"]
    assert (ours.tied_embeddings, attention.qkv_bias, ours.layers[0].feed_forward.bias) == (False, False, False)


@pytest.mark.parametrize(
    ("older", "newer"),
    [
        ({"rope_theta": 1e6}, {"rope_type": "default", "rope_theta": 1e6}),
        (
            {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}},
            {"rope_type": "linear", "rope_theta": 5e5, "factor": 2.0},
        ),
        (
            {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **LLAMA3}},
            {"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3},
        ),
        ({"rope_theta": 1e4, "rope_scaling": None}, {"rope_type": "default", "rope_theta": 1e4}),
    ],
)
def test_the_older_spelling_of_rope_means_what_the_newer_does(older: dict[str, Any], newer: dict[str, Any]) -> None:
    assert read(**older) == read(rope_parameters=newer)
    theirs = LlamaConfig(**{**SMALLEST, **older}).rope_parameters  # and transformers agrees
    assert {key: theirs[key] for key in newer} == newer


def test_scaling_carries_every_number() -> None:
    assert rope_of(read(rope_scaling={"type": "linear", "factor": 2})).scaling == LinearScaling(2.0)
    assert rope_of(read(rope_scaling={"rope_type": "llama3", **LLAMA3})).scaling == Llama3Scaling(8.0, 1.0, 4.0, 64)


def test_a_head_may_be_wider_than_its_share_of_the_model() -> None:
    assert read(head_dim=64).layers[0].attention.q_dim == 256


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ],
)
def test_what_gptfast_lacks_is_named(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        read(**changes)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"num_key_value_heads": 0}, "num_key_value_heads"),
        ({"num_attention_heads": 5}, "num_attention_heads"),
        ({"hidden_size": -48}, "hidden_size"),
        ({"hidden_size": "48"}, "hidden_size"),
        ({"hidden_size": 48.5}, "hidden_size"),
        ({"vocab_size": True}, "vocab_size"),
        ({"vocab_size": None}, "vocab_size"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"head_dim": 7}, "head_dim"),
        ({"rms_norm_eps": 0}, "rms_norm_eps"),
        ({"rms_norm_eps": 10**400}, "rms_norm_eps"),
        ({"attention_bias": "yes"}, "attention_bias"),
        ({"rope_theta": -1}, "rope_theta"),
        ({"rope_scaling": "linear"}, "rope_scaling"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling.*factor"),
        ({"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}}, "short_factor"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "rope_theta": 1}}, "rope_theta"),
        ({"rope_scaling": {"rope_type": "llama3", **LLAMA3, "high_freq_factor": 1.0}}, "high_freq_factor"),
    ],
)
def test_an_impossible_value_is_named_by_file_and_field(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(CorruptError, match=rf"config\.json.*{field}"):
        read(**changes)


def test_the_family_is_found_by_its_file_name() -> None:
    assert read().family in families
