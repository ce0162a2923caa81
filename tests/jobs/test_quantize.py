"""Quantizing a model: what comes out, what it is called, what it lost, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from chat_model import chat_model
from generation_requests import requested
from gptfast_cli.core.checkpoints.reader import open_checkpoint, open_manifest_checkpoint
from gptfast_cli.core.checkpoints.store import read_current
from gptfast_cli.core.engine.build import RuntimeConfig
from gptfast_cli.core.engine.load import LoadedModel, load
from gptfast_cli.core.engine.sampling import Sampling
from gptfast_cli.core.errors import CorruptError, DiskFullError, NotFoundError, UsageError
from gptfast_cli.core.events import Note, Progress
from gptfast_cli.core.jobs import generate
from gptfast_cli.core.jobs.quantize import Quantized, QuantizeRequest, run
from gptfast_cli.core.quantize.allocation import AllocationOptions
from gptfast_cli.core.quantize.quantizers import quantizers
from gptfast_cli.core.schemes import quantized
from gptfast_cli.core.settings import Settings
from model_files import WEIGHTS, cached_repo, converted, drained, edit_tensors, saved, settings_in

FLOAT32 = RuntimeConfig(device="cpu", dtype="float32")
INT4 = AllocationOptions("int4")


def quantize(model: Path | str | None, settings: Settings, **options: Any) -> Quantized:
    request = QuantizeRequest(settings, model=None if model is None else str(model), runtime=FLOAT32, **options)
    return drained(run(request))[1]


def events(model: Path | str, settings: Settings, **options: Any) -> list[object]:
    request = QuantizeRequest(settings, model=str(model), runtime=FLOAT32, **options)
    return list(drained(run(request))[0])


def test_the_bundled_model_in_int8_is_nearly_the_same_model(tmp_path: Path) -> None:
    quantized = quantize("tiny", settings_in(tmp_path))
    assert quantized.name == "tiny:int8" == read_current(tmp_path / "home")
    assert list(open_manifest_checkpoint(quantized.path).verify())
    assert quantized.fidelity is not None
    fidelity = quantized.fidelity.divergence
    assert fidelity.tokens == 2048
    assert fidelity.kld_mean <= 1e-3
    assert fidelity.same_top1 >= 0.99
    assert 0.999 < fidelity.alpha < 1
    assert quantized.bits_per_weight == pytest.approx(8.08, abs=0.01)


def test_the_bundled_model_in_int4_loses_more_and_less_with_smaller_groups(tmp_path: Path) -> None:
    alphas = []
    for group_size in (32, 256):
        quantized = quantize("tiny", settings_in(tmp_path), storage=AllocationOptions("int4", group_size))
        assert quantized.name == f"tiny:int4-g{group_size}"
        assert quantized.fidelity is not None
        alphas.append(quantized.fidelity.divergence.alpha)
    assert 0.99 < alphas[1] < alphas[0] < 0.999


@pytest.mark.parametrize("storage", [AllocationOptions("int8"), INT4, AllocationOptions("int4", 64, head="plain")])
def test_each_weight_is_what_the_rounding_makes_of_the_original(tmp_path: Path, storage: AllocationOptions) -> None:
    settings = settings_in(tmp_path)
    original = open_checkpoint(saved(tmp_path / "model", mlp_bias=True))
    small = open_manifest_checkpoint(quantize(original.path, settings, storage=storage, fidelity=False).path)
    for name, at in storage.allocation(original.config).of(original.config).items():
        (matrix,) = original.weight(name).parts.values()
        found = small.weight(name)
        assert found.scheme == at.scheme
        if at.scheme == "plain":
            assert torch.equal(found.parts["weight"], matrix)
        else:
            expected = quantizers["nearest"].quantize(matrix, quantized(at.scheme), at.group_size)
            assert all(torch.equal(found.parts[part], tensor) for part, tensor in expected.parts.items())


def test_the_manifest_tells_where_it_came_from_and_how_it_was_made(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    cached_repo(settings.hf_cache, "org/model", commit="c0ffee")
    manifest = open_manifest_checkpoint(quantize("hf://org/model@main", settings, storage=INT4).path).manifest
    provenance = manifest.provenance
    assert (manifest.name, manifest.scheme) == ("org/model:int4-g32", "int4")
    assert (provenance.source, provenance.revision, provenance.rounding) == ("org/model", "c0ffee", "nearest")


def test_a_quantized_model_is_loaded_as_it_is_stored_and_generates(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    quantized = quantize("tiny", settings, storage=INT4, fidelity=False)
    loaded: LoadedModel = drained(load(None, settings, RuntimeConfig(device="cpu", dtype="bfloat16")))[1]
    assert loaded.name == "tiny:int4-g32"
    assert loaded.model.weight_bytes == quantized.n_bytes  # no copy of more bits
    request = requested(
        generate.GenerateRequest,
        "7 + 5 =",
        settings,
        runtime=FLOAT32,
        sampling=Sampling(temperature=0),
        max_new_tokens=3,
    )
    assert drained(generate.run(request))[1].samples[0].text.startswith(" 12")


def test_the_tokenizer_and_the_chat_template_come_along(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    quantized = quantize(chat_model(tmp_path / "chat"), settings)
    entry = open_manifest_checkpoint(quantized.path).manifest.tokenizer
    assert entry is not None
    assert {"tokenizer.json", "tokenizer_config.json"} <= set(entry.files)
    assert (entry.bos_id, entry.stop_ids) == (256, (257,))
    assert quantized.fidelity is not None


@pytest.mark.parametrize(
    ("folder", "name"), [("model", "model:int8"), ("tiny", "model-tiny:int8"), ("My Model", "My-Model:int8")]
)
def test_a_folders_model_is_named_after_the_folder(tmp_path: Path, folder: str, name: str) -> None:
    assert quantize(saved(tmp_path / folder), settings_in(tmp_path)).name == name


def test_a_converted_model_keeps_its_name_with_the_scheme_behind_it(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    converted(saved(tmp_path / "model"), settings)
    assert quantize(None, settings, storage=AllocationOptions("int4", 64, embeddings="plain")).name == (
        "model:int4-g64-embeddings-plain"
    )


def test_another_place_can_be_given_and_is_then_the_current_model(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    quantized = quantize("tiny", settings, out=tmp_path / "out", fidelity=False)
    assert quantized.path == tmp_path / "out"
    assert read_current(settings.home) == str(tmp_path / "out")
    assert not (settings.home / "checkpoints").exists()


def test_progress_is_reported_block_by_block(tmp_path: Path) -> None:
    progress = [event for event in events("tiny", settings_in(tmp_path)) if isinstance(event, Progress)]
    assert progress == [Progress("quantize", done, 6, "blocks") for done in range(7)]


def test_a_dry_run_tells_the_sizes_and_writes_nothing(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    dry = quantize("tiny", settings, storage=INT4, dry_run=True)
    assert (dry.is_written, dry.fidelity, settings.home.exists()) == (False, None, False)
    written = quantize("tiny", settings, storage=INT4, fidelity=False)
    assert (dry.parts, dry.path, dry.n_bytes) == (written.parts, written.path, written.n_bytes)
    assert dry.n_bytes == open_manifest_checkpoint(written.path).n_bytes
    assert [(part.part, part.scheme) for part in dry.parts] == [
        ("embedding", "int8"),
        ("norms and biases", "plain"),
        ("layers", "int4-g32"),
    ]
    notes = [event.text for event in events("tiny", settings, storage=INT4, dry_run=True) if isinstance(event, Note)]
    assert any("already exists, made from the same source" in note for note in notes)
    other = {"storage": AllocationOptions("int8"), "out": written.path}
    notes = [event.text for event in events("tiny", settings, **other, dry_run=True) if isinstance(event, Note)]
    assert any("holds a checkpoint already" in note for note in notes)


def test_sizes_are_those_of_a_count_by_hand(tmp_path: Path) -> None:
    # 3 layers, dim 36, ffn 52, vocab 101; rows of 36 fill two groups of 32, rows of 52 two as well: 16 + 2 bytes each,
    # two 4-bit zero points in one byte
    parts = {
        part.part: part
        for part in quantize(saved(tmp_path / "model"), settings_in(tmp_path), storage=INT4, dry_run=True).parts
    }
    rows = 3 * 36 + 36 + 2 * 52 + 36
    assert parts["layers"].n_bytes == 3 * rows * (2 * 16 + 2 * 2 + 1)
    assert parts["layers"].n_bytes_before == 3 * 4 * ((3 * 36 + 36 + 2 * 52) * 36 + 36 * 52)
    assert parts["head"].n_bytes == parts["embedding"].n_bytes == 101 * (36 + 2)
    assert parts["norms and biases"].n_bytes == parts["norms and biases"].n_bytes_before == 4 * 36 * 7


def test_a_model_without_a_tokenizer_has_no_fidelity_and_says_so(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    model = saved(tmp_path / "model")
    assert Note("Fidelity is not measured: the model has no tokenizer.") in events(model, settings)
    assert quantize(model, settings, force=True).fidelity is None


def test_a_tokenizer_with_more_tokens_than_the_model_is_no_ground_for_fidelity(tmp_path: Path) -> None:
    model = chat_model(tmp_path / "chat")
    edit_tensors(model / WEIGHTS, lambda t: t.update({name: t[name][:60] for name in t if t[name].shape[0] == 260}))
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"vocab_size": 60}))
    output = events(model, settings_in(tmp_path))
    assert any(isinstance(event, Note) and "has no embedding: the model has 60" in event.text for event in output)


def test_fidelity_is_measured_on_a_text_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("7 + 5 = 12\n" * 20)
    quantized = quantize("tiny", settings_in(tmp_path), fidelity_text=tmp_path / "text")
    assert quantized.fidelity is not None
    assert 100 < quantized.fidelity.divergence.tokens < 300


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"storage": AllocationOptions("int3")}, "no scheme called 'int3'"),
        ({"storage": AllocationOptions("int4", 0)}, "--groupsize 0: int4 has groups of 32"),
        ({"storage": AllocationOptions("plain")}, "quantizes nothing"),
        ({"rounding": "up"}, "no quantizer called 'up'"),
        ({"fidelity_text": Path("/no/such/file")}, "cannot be read"),
        ({"runtime": RuntimeConfig(threads=0)}, "--threads"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    settings = settings_in(tmp_path)
    with pytest.raises(UsageError, match=message):
        drained(run(QuantizeRequest(settings, model="tiny", **options)))
    assert not settings.home.exists()


def test_a_model_is_called_by_the_scheme_of_its_layers_and_its_head_apart(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    # most of its parameters are in the embedding and the head
    folder = saved(tmp_path / "wide", vocab_size=4000, hidden_size=96, intermediate_size=96)
    path = quantize(folder, settings, storage=INT4, fidelity=False).path
    manifest = open_manifest_checkpoint(path).manifest
    assert (manifest.scheme, manifest.head_scheme) == ("int4", "int8")
    assert manifest.stored_as == "int4 layers, int8 embedding and head"
    with pytest.raises(UsageError, match=r"is already quantized \(int4 layers, int8 embedding and head\)"):
        quantize(path, settings, fidelity=False)


def test_quantizing_twice_is_refused_and_says_what_to_do(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    quantize("tiny", settings, fidelity=False)
    with pytest.raises(UsageError, match=r"tiny:int8: is already quantized \(int8\)") as refused:
        quantize(None, settings, storage=INT4)
    assert "Quantize the original model" in refused.value.hint


def test_a_checkpoint_is_not_replaced_unless_forced(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    first = quantize("tiny", settings, fidelity=False)
    before = (first.path / "gptfast.json").stat().st_ino
    with pytest.raises(UsageError, match="holds a checkpoint already"):
        quantize("tiny", settings, storage=INT4, out=first.path, fidelity=False)
    assert (first.path / "gptfast.json").stat().st_ino == before
    quantize("tiny", settings, fidelity=False, force=True)
    assert (first.path / "gptfast.json").stat().st_ino != before
    assert [path.name for path in first.path.parent.iterdir()] == [first.path.name]


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("tensor", ["model.layers.1.self_attn.k_proj.weight", "model.norm.weight"])
def test_a_broken_weight_is_named(tmp_path: Path, value: float, tensor: str) -> None:
    model = saved(tmp_path / "model")
    edit_tensors(model / WEIGHTS, lambda t: t[tensor].view(-1)[3].fill_(value))
    with pytest.raises(CorruptError, match=rf"{WEIGHTS}: {tensor}: holds NaN or infinite values"):
        quantize(model, settings_in(tmp_path))


def test_too_little_space_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(DiskFullError, match=r"needs [\d.]+ MB in .* and 1\.00 kB are free"):
        quantize("tiny", settings_in(tmp_path))
    assert not list((tmp_path / "home" / "checkpoints").rglob("*.safetensors"))


def test_a_model_that_is_nowhere_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        quantize("no/such", settings_in(tmp_path))
