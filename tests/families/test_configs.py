"""A config.json means what transformers makes of it: its model_type decides, and no key of it is ignored in silence."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from transformers import CONFIG_MAPPING

from families.random_models import CASES, SIZES, random_model
from gptfast_cli.core.config import Llama3Scaling, ModelConfig
from gptfast_cli.core.errors import CorruptError, GptFastError, UsageError
from gptfast_cli.core.families import families, read_model
from gptfast_cli.core.fields import Fields, read_fields

MODEL_TYPES = [(family, model_type) for family in families for model_type in families[family].model_types]

# they change nothing of the logits that a model computes for its own tokens
IRRELEVANT = {
    *("transformers_version", "dtype", "return_dict", "output_hidden_states", "chunk_size_feed_forward"),
    *("id2label", "label2id", "problem_type", "initializer_range", "use_cache", "pretraining_tp"),
    *("pad_token_id", "bos_token_id", "eos_token_id"),
    *("attention_dropout", "residual_dropout", "resid_pdrop", "embd_pdrop"),
}
# a value of a key that has none, or whose other values follow no rule
OTHERS: dict[str, Any] = {
    "architectures": ["LlamaForSequenceClassification"],
    "head_dim": 22,
    "layer_types": ["chunked_attention"] * 4,
    "attn_logit_softcapping": 5.0,
    "final_logit_softcapping": 5.0,
    "no_rope_layers": [1, 1, 0, 1],
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "rope_parameters": {"rope_type": "linear", "factor": 3.0},
    "sliding_window": 8,
    "use_bidirectional_attention": True,
}


def read(values: dict[str, Any]) -> ModelConfig:
    return read_model(Fields(values, "config.json")).config


def cases_of(family: str, model_type: str) -> list[dict[str, Any]]:
    """The files of the cases that are of a model_type."""
    first = families[family].model_types[0]
    cases = [{"model_type": first, **SIZES, **case} for case in CASES[family].values()]
    return [case for case in cases if case["model_type"] == model_type]


def other(key: str, value: object) -> object:
    if key in OTHERS:
        return OTHERS[key]
    if isinstance(value, bool):
        return not value
    assert isinstance(value, int | float | str), key
    return "other" if isinstance(value, str) else value * 2


@pytest.mark.parametrize(("family", "model_type"), MODEL_TYPES)
def test_every_key_of_the_config_class_is_used_or_refused(family: str, model_type: str) -> None:
    values = {each.name: each.default for each in dataclasses.fields(CONFIG_MAPPING[model_type])}
    ignored = []
    for key in values.keys() - IRRELEVANT:
        for case in cases_of(family, model_type):
            changed = case | {key: other(key, case.get(key, values[key]))}
            try:
                if read(changed) != read(case):
                    break
            except GptFastError as error:
                if key in error.message or key == "architectures":
                    break
        else:
            ignored.append(key)
    assert not ignored


@pytest.mark.parametrize(("family", "model_type"), MODEL_TYPES)
def test_what_a_file_leaves_out_is_what_transformers_takes_for_it(family: str, model_type: str) -> None:
    smallest = {"model_type": model_type}
    assert read(smallest) == read(CONFIG_MAPPING[model_type]().to_dict())


@pytest.mark.parametrize(("family", "model_type"), MODEL_TYPES)
def test_a_file_means_what_the_config_of_transformers_means_that_is_made_from_it(family: str, model_type: str) -> None:
    for case in cases_of(family, model_type):
        config = CONFIG_MAPPING[model_type](**{key: value for key, value in case.items() if key != "model_type"})
        assert read(case) == read(config.to_dict())


@pytest.mark.parametrize("family", families)
def test_without_a_model_type_the_architecture_decides(family: str) -> None:
    first = families[family].model_types[0]
    case = {**SIZES, **next(iter(CASES[family].values()))}
    assert read(case | {"architectures": list(families[family].architectures)}) == read(case | {"model_type": first})


def test_the_model_type_decides_and_not_the_architecture() -> None:
    assert read({**SIZES, "model_type": "qwen3", "architectures": ["LlamaForCausalLM"]}).family == "qwen3"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "qwen3_moe", "num_experts": 8}, "nearest family is qwen3, and gptfast lacks a mixture"),
        ({"model_type": "qwen9"}, "qwen9 are not supported: the nearest family is qwen3"),
        ({"architectures": ["BloomForCausalLM"], "layer_norm_epsilon": 1e-5}, "BloomForCausalLM .* lacks LayerNorm"),
        ({"model_type": "llama", "architectures": ["LlamaForSequenceClassification"]}, "generates no text"),
        ({"model_type": "llama", "per_layer_config": {"1": {"head_dim": 8}}}, "per_layer_config"),
        ({"model_type": "llama", "rope_parameters": {"mrope_section": [2, 2]}}, "mrope_section"),
        ({"model_type": "llama", "rope_parameters": {"rope_type": "axial"}}, "'axial'"),
        ({"model_type": "llama", "hidden_act": "relu2"}, "hidden_act 'relu2'"),
    ],
)
def test_what_gptfast_lacks_is_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read({**SIZES, **values})


def test_a_file_with_neither_model_type_nor_architectures_is_damaged() -> None:
    with pytest.raises(CorruptError, match=r"config\.json: model_type: missing"):
        read(SIZES)


def test_a_context_outside_of_the_rope_parameters_wins_as_in_transformers() -> None:
    case = CASES["llama"]["llama3"]
    assert case["rope_parameters"]["original_max_position_embeddings"] == 64
    theirs = random_model("llama", "llama3", original_max_position_embeddings=32).config
    assert theirs.rope_parameters["original_max_position_embeddings"] == 32
    rope = (
        read({**SIZES, **case, "model_type": "llama", "original_max_position_embeddings": 32}).layers[0].attention.rope
    )
    assert rope is not None and isinstance(rope.scaling, Llama3Scaling)
    assert rope.scaling.original_context == 32


def test_infinity_in_a_config_is_json_and_no_size(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**SIZES, "model_type": "llama", "time_step_limit": [0.0, float("inf")]}))
    assert read_model(read_fields(path, infinity=True)).config.dim == 56
    path.write_text(json.dumps({**SIZES, "model_type": "llama", "rms_norm_eps": float("inf")}))
    with pytest.raises(CorruptError, match="rms_norm_eps"):
        read_model(read_fields(path, infinity=True))
