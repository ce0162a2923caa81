"""Converting keeps every bit, names the checkpoint after its source, and says where it came from."""

import json
from pathlib import Path

import pytest
import tokenizers
import torch
from safetensors.torch import load_file

from gptfast_cli.core.checkpoints.manifest import read_manifest
from gptfast_cli.core.checkpoints.reader import open_checkpoint
from gptfast_cli.core.checkpoints.resolve import resolve
from gptfast_cli.core.checkpoints.store import read_current
from gptfast_cli.core.errors import NotFoundError, UsageError
from gptfast_cli.core.events import Note, Progress
from gptfast_cli.core.families import families
from gptfast_cli.core.jobs.convert import ConvertRequest, run
from gptfast_cli.core.tokenizers import SpecialTokens, open_tokenizer
from llama_oracle import SHAPES
from model_files import WEIGHTS, cached_repo, converted, drained, edit_tensors, saved, settings_in


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_weight_comes_back_bit_for_bit(tmp_path: Path, shape: str, sharded: bool) -> None:
    source = saved(tmp_path / "model", sharded=sharded, **SHAPES[shape])
    theirs = {name: tensor for file in source.glob("*.safetensors") for name, tensor in load_file(file).items()}
    ours = open_checkpoint(converted(source, settings_in(tmp_path)).path)
    for name, tensors in families["llama"].sources(ours.config).items():
        expected = torch.cat([theirs[tensor] for tensor in tensors])
        assert torch.equal(ours.weight(name).parts["weight"], expected), name


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_a_dtype_that_is_asked_for_is_that_of_every_weight(tmp_path: Path, dtype: str) -> None:
    source = saved(tmp_path / "model", **SHAPES["biases"])
    ours = open_checkpoint(converted(source, settings_in(tmp_path), dtype=dtype).path)
    theirs = load_file(source / WEIGHTS)["model.layers.1.mlp.down_proj.weight"]
    assert ours.dtype is getattr(torch, dtype)
    assert torch.equal(ours.weight("layers.1.down").parts["weight"], theirs.to(getattr(torch, dtype)))
    assert ours.weight("layers.1.qkv_bias").parts["weight"].dtype is ours.dtype


def test_without_a_dtype_each_tensor_keeps_its_own(tmp_path: Path) -> None:
    source = saved(tmp_path / "model")
    edit_tensors(source / WEIGHTS, lambda t: t.update({k: v.bfloat16() for k, v in t.items() if "norm" not in k}))
    ours = open_checkpoint(converted(source, settings_in(tmp_path)).path)
    assert ours.dtype is torch.bfloat16
    assert ours.weight("norm").parts["weight"].dtype is torch.float32
    assert ours.weight("layers.0.qkv").parts["weight"].dtype is torch.bfloat16


def test_converting_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    source = saved(tmp_path / "model")
    for out in ("one", "two"):
        converted(source, settings_in(tmp_path), out=tmp_path / out)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_progress_counts_the_bytes_up_to_all_of_them(tmp_path: Path) -> None:
    request = ConvertRequest(str(saved(tmp_path / "model")), settings_in(tmp_path), verify=True)
    events, result = drained(run(request))
    for task in ("write", "verify"):
        counts = [event.done for event in events if isinstance(event, Progress) and event.task == task]
        assert counts == sorted(counts)
        assert counts[-1] == result.n_bytes


def test_a_cached_repository_is_converted_under_its_own_name(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    cached_repo(settings.hf_cache, "Org/Model", commit="abc123")
    result = converted("Org/Model", settings)
    manifest = read_manifest(result.path)
    assert (result.name, manifest.name) == ("Org/Model", "Org/Model")
    assert (manifest.provenance.source, manifest.provenance.revision) == ("Org/Model", "abc123")


def test_what_was_converted_is_the_current_model(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    source = saved(tmp_path / "model")
    converted(source, settings)
    assert read_current(settings.home) == "model"
    converted(source, settings, out=tmp_path / "elsewhere")
    assert read_current(settings.home) == str(tmp_path / "elsewhere")


def test_the_manifest_names_no_place_of_this_machine(tmp_path: Path) -> None:
    manifest = converted(saved(tmp_path / "model"), settings_in(tmp_path)).path / "gptfast.json"
    assert str(tmp_path) not in manifest.read_text()


def test_a_model_without_a_tokenizer_is_converted_with_a_note(tmp_path: Path) -> None:
    events, result = drained(run(ConvertRequest(str(saved(tmp_path / "model")), settings_in(tmp_path))))
    assert next(event.text for event in events if isinstance(event, Note)).startswith("No tokenizer")
    entry = read_manifest(result.path).tokenizer
    assert entry is not None
    assert (entry.files, entry.bos_id, entry.stop_ids) == ({}, 1, (2,))  # config.json declares the ids


def with_tokenizer(folder: Path) -> Path:
    """Give a folder a tokenizer.json of three words and say which of them are special."""
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2, "once": 3, "upon": 4}
    tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>")).save(
        str(folder / "tokenizer.json")
    )
    special = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(special))
    return folder


def test_a_tokenizer_comes_along_and_means_the_same(tmp_path: Path) -> None:
    source = with_tokenizer(saved(tmp_path / "model"))
    path = converted(source, settings_in(tmp_path), verify=True).path
    entry = read_manifest(path).tokenizer
    assert entry is not None
    special = SpecialTokens(entry.bos_id, entry.add_bos, frozenset(entry.stop_ids))
    theirs, ours = open_tokenizer(source), open_tokenizer(path, special)
    assert theirs is not None
    assert ours is not None
    assert ours.special == theirs.special
    assert ours.encode("once") == theirs.encode("once")


@pytest.mark.parametrize("kind", ["folder", "checkpoint"])
def test_the_tokenizer_of_another_model_is_taken_where_that_is_asked(tmp_path: Path, kind: str) -> None:
    settings = settings_in(tmp_path)
    other = with_tokenizer(saved(tmp_path / "other"))
    if kind == "checkpoint":
        other = converted(other, settings).path
    path = converted(saved(tmp_path / "model"), settings, tokenizer_from=str(other), verify=True).path
    entry = read_manifest(path).tokenizer
    assert entry is not None
    assert "tokenizer.json" in entry.files
    assert (entry.bos_id, entry.stop_ids) == (1, (2,))


def test_a_model_to_take_the_tokenizer_from_must_have_one(tmp_path: Path) -> None:
    bare = saved(tmp_path / "bare")
    with pytest.raises(NotFoundError, match="has no tokenizer"):
        converted(saved(tmp_path / "model"), settings_in(tmp_path), tokenizer_from=str(bare))


@pytest.mark.parametrize("options", [{"dtype": "int8"}, {"tokenizer_from": "no/such"}])
def test_an_option_that_cannot_be_meant_is_refused(tmp_path: Path, options: dict[str, str]) -> None:
    with pytest.raises((UsageError, NotFoundError)):
        converted(saved(tmp_path / "model"), settings_in(tmp_path), **options)


def test_a_source_that_is_nowhere_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="org/model") as caught:
        converted("org/model", settings_in(tmp_path))
    assert "gptfast download org/model" in caught.value.hint


def test_a_folder_with_a_bundled_name_gets_another_in_the_store_and_is_current(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_in(tmp_path)
    saved(tmp_path / "tiny")
    monkeypatch.chdir(tmp_path)
    made = converted("tiny", settings)
    assert made.name == "model-tiny"
    assert resolve(None, settings).path == made.path
    assert converted("tiny", settings, out=tmp_path / "out").name == "tiny"
