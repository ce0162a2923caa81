"""Declarations of quantized weights, as published repositories write them."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from transformers.quantizers.quantizers_utils import should_convert_module

from gptfast_cli.core.checkpoints.quantization_config import (
    METHODS,
    QuantizationConfig,
    WeightFormat,
    quantization_config,
    read_quantization_config,
)
from gptfast_cli.core.errors import CorruptError, UsageError
from gptfast_cli.core.fields import Fields

QUERY, DOWN, HEAD, EMBEDDING = (
    "model.layers.3.self_attn.q_proj",
    "model.layers.3.mlp.down_proj",
    "lm_head",
    "model.embed_tokens",
)

GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": True, "sym": True}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "modules_to_not_convert": ["down_proj"]}
PACKED = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "ignore": ["lm_head"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 64, "symmetric": False},
        }
    },
}
FP8 = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 64]}
MODELOPT = {"quant_algo": "NVFP4", "group_size": 16, "exclude_modules": ["lm_head", "model.layers.3.self*"]}
NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
MXFP4 = {
    "quant_method": "mxfp4",
    "modules_to_not_convert": ["model.layers.*.self_attn", "model.embed_tokens", "lm_head"],
}
MLX = {"group_size": 64, "bits": 4, DOWN: {"group_size": 32, "bits": 8}, HEAD: False}


def declared(values: dict[str, Any], key: str = "quantization_config") -> QuantizationConfig:
    """The declaration of a config.json that holds these values."""
    found = quantization_config(Fields({"model_type": "llama", key: values}, "config.json"))
    assert found is not None
    return found


INT4_G128 = WeightFormat(4, group_size=128, group_bits=20)
FP4_G16, FP4_G32 = (WeightFormat(4, is_float=True, group_size=size, group_bits=8) for size in (16, 32))


@pytest.mark.parametrize(
    ("config", "name", "formats"),
    [
        (declared(GPTQ), "gptq-4bit-g128", (INT4_G128, INT4_G128, None, None)),
        (declared({**GPTQ, "lm_head": True, "group_size": -1}), "gptq-4bit", (WeightFormat(4, group_bits=20),) * 3),
        (declared(AWQ), "awq-4bit-g128", (INT4_G128, None, None, None)),
        (
            declared(PACKED),
            "compressed-tensors-4bit-g64",
            (*[WeightFormat(4, group_size=64, group_bits=20)] * 2, None, None),
        ),
        (
            declared(FP8),
            "fp8",
            (*[WeightFormat(8, is_float=True, group_size=64, group_rows=128, group_bits=32)] * 2, None, None),
        ),
        (declared({"quant_method": "modelopt", **MODELOPT}), "modelopt-4bit-g16", (None, FP4_G16, None, None)),
        (
            declared(NF4),
            "bitsandbytes-4bit",
            (*[WeightFormat(4, is_float=True, group_size=64, group_bits=8.125)] * 2, None, None),
        ),
        (declared(MXFP4), "mxfp4", (None, FP4_G32, None, None)),
        (
            declared(MLX, "quantization"),
            "mlx-4bit-g64",
            (WeightFormat(4, group_size=64, group_bits=32), WeightFormat(8, group_size=32, group_bits=32), None,
             WeightFormat(4, group_size=64, group_bits=32)),
        ),
    ],
    ids=lambda value: str(value) if isinstance(value, QuantizationConfig) else "",
)  # fmt: skip
def test_each_method_is_read_with_the_modules_that_stay_plain(
    config: QuantizationConfig, name: str, formats: tuple[WeightFormat | None, ...]
) -> None:
    assert str(config) == name and config.method in METHODS
    assert tuple(map(config.format_of, (QUERY, DOWN, HEAD, EMBEDDING)[: len(formats)])) == formats


def test_rules_of_gptqmodel_change_the_bits_of_some_modules_and_leave_others_plain() -> None:
    config = declared({**GPTQ, "dynamic": {r"+:.*\.mlp\..*": {"bits": 8}, r"-:model\.layers\.3\.": {}}})
    assert config.format_of("model.layers.2.mlp.up_proj") == WeightFormat(8, group_size=128, group_bits=24)
    assert config.format_of(QUERY) is None and config.format_of("model.layers.2.self_attn.q_proj") == INT4_G128
    assert config.ignored == (r"model\.layers\.3\.",)


def test_groups_of_compressed_tensors_may_name_their_modules() -> None:
    groups = {
        "a": {"targets": [r"re:.*down_proj$"], "weights": {"num_bits": 8, "type": "float", "strategy": "channel"}},
        "b": {"targets": ["Linear"], "weights": {"num_bits": 4, "group_size": 128}},
    }
    config = declared({**PACKED, "config_groups": groups})
    assert config.format_of(DOWN) == WeightFormat(8, is_float=True, group_bits=16)
    assert (config.bits, config.group_size) == (4, 128) and config.format_of(QUERY) == config.format
    alone = declared({**PACKED, "config_groups": {"a": groups["a"]}})
    assert alone.bits == 8 and alone.format_of(DOWN) == alone.format and alone.format_of(QUERY) is None


def test_modelopt_may_mix_algorithms() -> None:
    layers = {QUERY: {"quant_algo": "FP8"}, DOWN: {"quant_algo": "NVFP4", "group_size": 16}}
    config = declared({"quant_algo": "MIXED_PRECISION", "quantized_layers": layers})
    assert config.format_of(QUERY) == WeightFormat(8, is_float=True) and config.format_of(DOWN) == FP4_G16
    assert config.format_of("model.layers.0.mlp.down_proj") is None


@pytest.mark.parametrize(
    "patterns",
    [["lm_head"], ["model.layers.3"], ["layers.3"], ["model.layers.*.self_attn"], ["q_proj"], ["self_attn.q"], ["o"]],
)
def test_modules_to_leave_plain_are_those_of_transformers(patterns: list[str]) -> None:
    config = declared({**FP8, "modules_to_not_convert": patterns})
    for module in (QUERY, DOWN, QUERY.replace("3", "30"), "model.layers.3.self_attn.o_proj"):
        assert (config.format_of(module) is not None) == should_convert_module(module, patterns), module


@pytest.mark.parametrize(
    ("file", "values", "name"),
    [
        ("hf_quant_config.json", {"producer": {"name": "modelopt"}, "quantization": MODELOPT}, "modelopt-4bit-g16"),
        ("quantize_config.json", {"bits": 3, "group_size": 64, "desc_act": False}, "gptq-3bit-g64"),
        ("quant_config.json", {"w_bit": 4, "q_group_size": 32, "zero_point": True}, "awq-4bit-g32"),
    ],
)
def test_a_file_of_its_own_counts_where_the_config_says_nothing(
    tmp_path: Path, file: str, values: dict[str, Any], name: str
) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama", "rope_theta": Infinity}')
    assert read_quantization_config(tmp_path) is None
    (tmp_path / file).write_text(json.dumps(values))
    assert str(read_quantization_config(tmp_path)) == name
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": FP8}))
    assert str(read_quantization_config(tmp_path)) == "fp8"


def test_the_declaration_of_a_text_model_is_found() -> None:
    fields = Fields({"model_type": "gemma3", "text_config": {"quantization_config": GPTQ}}, "config.json")
    assert str(quantization_config(fields)) == "gptq-4bit-g128"


def test_an_unknown_method_has_at_most_its_bits() -> None:
    assert str(declared({"quant_method": "auto-round", "bits": 2, "group_size": 128})) == "auto-round-2bit-g128"
    quark = declared({"quant_method": "quark", "global_quant_config": {}})
    assert str(quark) == "quark" and quark.bits is None and quark.method not in METHODS
    assert str(declared({"bits": 4})) == "quantized-4bit"


@pytest.mark.parametrize(
    "values",
    [
        {**GPTQ, "bits": "4"},
        {**GPTQ, "bits": 400},
        {**GPTQ, "group_size": -7},
        {**GPTQ, "dynamic": {"+:(": {"bits": 8}}},
        {**FP8, "weight_block_size": [128]},
        {**FP8, "modules_to_not_convert": "lm_head"},
        {**PACKED, "config_groups": []},
        {**PACKED, "config_groups": {"a": {"targets": ["Linear"], "weights": {"num_bits": None, "type": 3}}}},
    ],
)
def test_a_damaged_declaration_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(CorruptError, match=re.escape("config.json: ")):
        declared(values)


@pytest.mark.parametrize("pattern", ["(a+)+$", ".*.*.*.*.*.*x"])
def test_a_pattern_that_could_take_for_ever_is_refused(pattern: str) -> None:
    with pytest.raises(UsageError, match="too many repetitions"):
        declared({**FP8, "modules_to_not_convert": [pattern]})
