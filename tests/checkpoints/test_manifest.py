"""A manifest says everything, comes back equal, and is refused by file and field where it was tampered with."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gptfast_cli.core.checkpoints.manifest import (
    MANIFEST_FILE,
    Manifest,
    ManifestTensor,
    ManifestWeight,
    Provenance,
    TokenizerEntry,
    config_from_json,
    config_to_json,
    read_manifest,
)
from gptfast_cli.core.config import ModelConfig
from gptfast_cli.core.errors import CorruptError, UsageError
from gptfast_cli.core.families import families
from gptfast_cli.core.fields import Fields
from llama_oracle import SHAPES, random_llama
from model_files import converted, edit_json, saved, settings_in

SHA = "0123456789abcdef" * 4


def config_of(shape: str) -> ModelConfig:
    return families["llama"].config(random_llama(**SHAPES[shape]).config.to_dict())


def manifest() -> Manifest:
    weights = {
        "embedding": ManifestWeight(
            "plain", (10, 4), {"weight": ManifestTensor("a.safetensors", "BF16", (10, 4), SHA)}
        ),
        "layers.0.qkv": ManifestWeight(
            "int4",
            (6, 8),
            {
                "weight": ManifestTensor("a.safetensors", "U8", (6, 4), SHA),
                "scales": ManifestTensor("b.safetensors", "F32", (6, 1), SHA),
            },
        ),
    }
    tokenizer = TokenizerEntry({"tokenizer.model": SHA}, bos_id=None, stop_ids=(2, 7), add_bos=False)
    return Manifest("org/m:int4", config_of("biases"), "bfloat16", weights, tokenizer, Provenance("org/m", "c0", "t 1"))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_config_comes_back_equal(shape: str) -> None:
    config = config_of(shape)
    assert config_from_json(Fields(json.loads(json.dumps(config_to_json(config))), "gptfast.json")) == config


@pytest.mark.parametrize("given", [manifest(), replace(manifest(), tokenizer=None)])
def test_a_manifest_comes_back_equal(tmp_path: Path, given: Manifest) -> None:
    (tmp_path / MANIFEST_FILE).write_text(given.to_json())
    assert read_manifest(tmp_path) == given


def test_bytes_are_those_stored_and_parameters_those_meant() -> None:
    assert manifest().n_bytes == 10 * 4 * 2 + 6 * 4 + 6 * 4
    assert manifest().n_params == 10 * 4 + 6 * 8


def test_the_scheme_is_that_of_the_layers() -> None:
    assert manifest().scheme == "int4"


SPOILT: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "no format": (lambda m: m.pop("format"), "format"),
    "no config": (lambda m: m.pop("config"), "config"),
    "a size as text": (lambda m: m["config"].update(dim="36"), "config.dim|config: dim"),
    "heads that do not divide": (lambda m: m["config"]["kinds"][0]["attention"].update(n_kv_heads=2), "n_kv_heads"),
    "unknown scaling": (
        lambda m: m["config"]["kinds"][0]["attention"]["rope"].update(scaling={"type": "spiral"}),
        "scaling.*spiral",
    ),
    "unknown dtype": (lambda m: m.update(dtype="float8"), "dtype"),
    "no weights": (lambda m: m.update(weights={}), "weights"),
    "a part in another folder": (
        lambda m: m["weights"]["norm"]["parts"]["weight"].update(file="../x.safetensors"),
        "norm.*file",
    ),
    "a hidden file": (lambda m: m["weights"]["norm"]["parts"]["weight"].update(file=".."), "norm.*file"),
    "a hash that is none": (lambda m: m["weights"]["norm"]["parts"]["weight"].update(sha256="beef"), "norm.*sha256"),
    "a negative shape": (lambda m: m["weights"]["norm"].update(shape=[-36]), "norm.*shape"),
    "a shape of more than can be": (lambda m: m["weights"]["norm"].update(shape=[2**40, 2**40]), "norm.*shape"),
    "a part of unknown dtype": (lambda m: m["weights"]["norm"]["parts"]["weight"].update(dtype="F4"), "norm.*dtype"),
    "a tokenizer in another folder": (lambda m: m["tokenizer"].update(files={"/etc/passwd": SHA}), "tokenizer"),
    "a stop token as text": (lambda m: m["tokenizer"].update(stop_ids=["</s>"]), "stop_ids"),
}


@pytest.mark.parametrize("case", SPOILT)
def test_a_manifest_that_was_tampered_with_is_named_by_file_and_field(tmp_path: Path, case: str) -> None:
    spoil, named = SPOILT[case]
    folder = converted(saved(tmp_path / "model"), settings_in(tmp_path)).path
    edit_json(folder / MANIFEST_FILE, spoil)
    with pytest.raises(CorruptError, match=rf"gptfast\.json.*({named})"):
        read_manifest(folder)


def test_a_newer_format_asks_for_a_newer_program(tmp_path: Path) -> None:
    folder = converted(saved(tmp_path / "model"), settings_in(tmp_path)).path
    edit_json(folder / MANIFEST_FILE, lambda m: m.update(format=3, config="of another kind"))
    with pytest.raises(UsageError) as caught:
        read_manifest(folder)
    assert "upgrade this one" in caught.value.hint
