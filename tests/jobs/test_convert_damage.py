"""A damaged source ends in an error that names file and tensor, and nothing is written; harmless extras pass."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from gptfast_cli.core.checkpoints.manifest import read_manifest
from gptfast_cli.core.checkpoints.reader import open_checkpoint
from gptfast_cli.core.checkpoints.store import read_current
from gptfast_cli.core.errors import CorruptError, GptFastError, NotFoundError, UsageError
from model_files import INDEX, WEIGHTS, converted, edit_header, edit_json, edit_tensors, saved, settings_in


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Sound folders to be copied and spoilt."""
    root = tmp_path_factory.mktemp("sound")
    return {
        "single": saved(root / "single"),
        "sharded": saved(root / "sharded", sharded=True),
        "tied": saved(root / "tied", tie_word_embeddings=True),
    }


def shard_of(folder: Path, tensor: str) -> Path:
    return folder / json.loads((folder / INDEX).read_text())["weight_map"][tensor]


def _nan(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.layers.1.self_attn.k_proj.weight"][2, 3] = torch.nan


def _infinite(tensors: dict[str, torch.Tensor]) -> None:
    tensors["lm_head.weight"][-1, -1] = -torch.inf


def _trailing(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0\0\0\0")


def _cut(path: Path, by: int = 1) -> None:
    path.write_bytes(path.read_bytes()[:-by])


def _overlap(header: str) -> str:
    """Two tensors of one size share bytes, and as many are left over at the end."""
    entries = json.loads(header)
    entries["model.layers.0.mlp.up_proj.weight"]["data_offsets"] = entries["model.layers.0.mlp.gate_proj.weight"][
        "data_offsets"
    ]
    return json.dumps(entries)


NORM, HEAD = "model.norm.weight", "lm_head.weight"
Q0 = "model.layers.0.self_attn.q_proj.weight"

SPOILT: dict[str, tuple[str, Callable[[Path], object], type[GptFastError], str]] = {
    "missing tensor": (
        "single",
        lambda f: edit_tensors(f / WEIGHTS, lambda t: t.pop(NORM)),
        CorruptError,
        f"{WEIGHTS}: {NORM}",
    ),
    "missing head": (
        "single",
        lambda f: edit_tensors(f / WEIGHTS, lambda t: t.pop(HEAD)),
        CorruptError,
        f"{WEIGHTS}: {HEAD}",
    ),
    "extra tensor": (
        "single",
        lambda f: edit_tensors(f / WEIGHTS, lambda t: t.update({"model.more.weight": torch.ones(3)})),
        CorruptError,
        f"{WEIGHTS}: model.more.weight",
    ),
    "bias that the config denies": (
        "single",
        lambda f: edit_tensors(f / WEIGHTS, lambda t: t.update({Q0.replace("weight", "bias"): torch.ones(36)})),
        CorruptError,
        f"{WEIGHTS}: {Q0.replace('weight', 'bias')}",
    ),
    "transposed tensor": (
        "single",
        lambda f: edit_tensors(
            f / WEIGHTS, lambda t: t.update({"model.layers.2.mlp.down_proj.weight": torch.ones(52, 36)})
        ),
        CorruptError,
        f"{WEIGHTS}: model.layers.2.mlp.down_proj.weight",
    ),
    "rows moved from query to key": (
        "single",
        lambda f: edit_tensors(
            f / WEIGHTS,
            lambda t: t.update({Q0: torch.ones(24, 36), Q0.replace("q_proj", "k_proj"): torch.ones(48, 36)}),
        ),
        CorruptError,
        f"{WEIGHTS}: {Q0}",
    ),
    "integer weights": (
        "single",
        lambda f: edit_tensors(f / WEIGHTS, lambda t: t.update({NORM: torch.ones(36, dtype=torch.int8)})),
        UsageError,
        f"{WEIGHTS}: {NORM}",
    ),
    "NaN": (
        "single",
        lambda f: edit_tensors(f / WEIGHTS, _nan),
        CorruptError,
        f"{WEIGHTS}: model.layers.1.self_attn.k_proj.weight",
    ),
    "infinity": ("single", lambda f: edit_tensors(f / WEIGHTS, _infinite), CorruptError, f"{WEIGHTS}: {HEAD}"),
    "duplicate key": (
        "single",
        lambda f: edit_header(f / WEIGHTS, lambda h: h.replace('"model.layers.0.', '"model.layers.1.')),
        CorruptError,
        f"{WEIGHTS}.*model.layers.1.*twice",
    ),
    "truncated by a byte": (
        "single",
        lambda f: _cut(f / WEIGHTS),
        CorruptError,
        f"{WEIGHTS}: .*weight: 1 bytes are missing",
    ),
    "cut to half a header": (
        "single",
        lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:100]),
        CorruptError,
        WEIGHTS,
    ),
    "empty": ("single", lambda f: (f / WEIGHTS).write_bytes(b""), CorruptError, WEIGHTS),
    "a page of HTML": (
        "single",
        lambda f: (f / WEIGHTS).write_bytes(b"<html>" + b"not found " * 50),
        CorruptError,
        WEIGHTS,
    ),
    "trailing bytes": ("single", lambda f: _trailing(f / WEIGHTS), CorruptError, f"{WEIGHTS}: 4 bytes follow"),
    "overlapping tensors": (
        "single",
        lambda f: edit_header(f / WEIGHTS, _overlap),
        CorruptError,
        f"{WEIGHTS}: model.layers.0.mlp",
    ),
    "offsets that do not fit the shape": (
        "single",
        lambda f: edit_header(f / WEIGHTS, lambda h: h.replace('"shape":[36]', '"shape":[35]', 1)),
        CorruptError,
        f"{WEIGHTS}: .*data_offsets",
    ),
    "header of no JSON": (
        "single",
        lambda f: edit_header(f / WEIGHTS, lambda h: h.replace(":", ";", 1)),
        CorruptError,
        WEIGHTS,
    ),
    "shard missing": (
        "sharded",
        lambda f: shard_of(f, NORM).unlink(),
        CorruptError,
        r"model-\d+-of-\d+\.safetensors: missing",
    ),
    "index names a tensor that its shard lacks": (
        "sharded",
        lambda f: edit_tensors(shard_of(f, NORM), lambda t: t.pop(NORM)),
        CorruptError,
        rf"model-.*safetensors: {NORM}: not in the file",
    ),
    "shard holds a tensor that the index lacks": (
        "sharded",
        lambda f: edit_json(f / INDEX, lambda v: v["weight_map"].pop(NORM)),
        CorruptError,
        rf"model-.*safetensors: {NORM}: in the file",
    ),
    "index leads out of the folder": (
        "sharded",
        lambda f: edit_json(f / INDEX, lambda v: v["weight_map"].update({NORM: "../single/model.safetensors"})),
        CorruptError,
        f"{INDEX}: weight_map: {NORM}",
    ),
    "shard truncated": (
        "sharded",
        lambda f: _cut(shard_of(f, NORM), 40),
        CorruptError,
        r"model-.*safetensors: .*: 40 bytes are missing",
    ),
    "head that differs from the embedding it is tied to": (
        "tied",
        lambda f: edit_tensors(f / WEIGHTS, lambda t: t.update({HEAD: t["model.embed_tokens.weight"] + 1})),
        CorruptError,
        f"{WEIGHTS}: {HEAD}",
    ),
    "pickled weights only": (
        "single",
        lambda f: (f / WEIGHTS).rename(f / "pytorch_model.bin"),
        CorruptError,
        "is a pickle",
    ),
    "no weights": ("single", lambda f: (f / WEIGHTS).unlink(), CorruptError, WEIGHTS),
    "no config": (
        "single",
        lambda f: (f / "config.json").unlink(),
        NotFoundError,
        "looked for gptfast.json, config.json",
    ),
    "config of no JSON": (
        "single",
        lambda f: (f / "config.json").write_text("{"),
        CorruptError,
        "config.json",
    ),
    "config with a key twice": (
        "single",
        lambda f: (f / "config.json").write_text('{"hidden_size": 36, "hidden_size": 37}'),
        CorruptError,
        "config.json.*hidden_size",
    ),
    "config of another size": (
        "single",
        lambda f: edit_json(f / "config.json", lambda v: v.update(intermediate_size=50)),
        CorruptError,
        f"{WEIGHTS}: model.layers.0.mlp.gate_proj.weight",
    ),
    "unknown architecture": (
        "single",
        lambda f: edit_json(f / "config.json", lambda v: v.update(architectures=["GPT2LMHeadModel"])),
        UsageError,
        "GPT2LMHeadModel",
    ),
    "weights quantized by another program": (
        "single",
        lambda f: edit_json(f / "config.json", lambda v: v.update(quantization_config={"bits": 4})),
        UsageError,
        "config.json",
    ),
}


@pytest.mark.parametrize("case", SPOILT)
def test_a_spoilt_source_is_named_and_nothing_is_written(tmp_path: Path, sound: dict[str, Path], case: str) -> None:
    base, spoil, kind, named = SPOILT[case]
    source = tmp_path / "model"
    shutil.copytree(sound[base], source)
    spoil(source)
    settings = settings_in(tmp_path)
    with pytest.raises(kind, match=named):
        converted(source, settings)
    written = [path for path in settings.home.rglob("*") if path.is_file()]
    assert (written, read_current(settings.home)) == ([], None)


def test_an_error_names_the_first_few_of_many_tensors_and_their_number(tmp_path: Path) -> None:
    source = saved(tmp_path / "model")
    edit_json(source / "config.json", lambda values: values.update(num_hidden_layers=5))
    with pytest.raises(CorruptError, match=r"model\.layers\.3\..*18 in all"):
        converted(source, settings_in(tmp_path))


def test_a_tied_head_that_is_the_embedding_is_ignored(tmp_path: Path) -> None:
    source = saved(tmp_path / "model", tie_word_embeddings=True)
    edit_tensors(source / WEIGHTS, lambda t: t.update({HEAD: t["model.embed_tokens.weight"].clone()}))
    assert "head" not in read_manifest(converted(source, settings_in(tmp_path)).path).weights


def test_saved_rope_frequencies_are_ignored(tmp_path: Path) -> None:
    source = saved(tmp_path / "model")
    edit_tensors(source / WEIGHTS, lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(6)}))
    assert converted(source, settings_in(tmp_path)).n_params == open_checkpoint(source).n_params


def test_values_too_large_for_the_dtype_are_named(tmp_path: Path) -> None:
    source = saved(tmp_path / "model")
    edit_tensors(source / WEIGHTS, lambda t: t.update({NORM: t[NORM] * 1e6}))
    with pytest.raises(UsageError, match=f"{WEIGHTS}: {NORM}: .*float16"):
        converted(source, settings_in(tmp_path), dtype="float16")
