"""Weights are compared with their SHA-256 before they are loaded; a bad one is named with what fetches it again."""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from generation_requests import requested
from gptfast_cli.core.checkpoints.reader import open_manifest_checkpoint
from gptfast_cli.core.engine.build import RuntimeConfig
from gptfast_cli.core.errors import CorruptError, UsageError
from gptfast_cli.core.events import Event, Progress
from gptfast_cli.core.jobs.generate import GenerateRequest, run
from gptfast_cli.core.jobs.quantize import QuantizeRequest
from gptfast_cli.core.jobs.quantize import run as quantize
from gptfast_cli.core.quantize.allocation import AllocationOptions
from model_files import WEIGHTS, cached_repo, converted, drained, saved, settings_in

SHARD = "weights-00001.safetensors"


def generated(model: Path | str, root: Path, *, verify: bool = True) -> list[Event]:
    runtime = RuntimeConfig(device="cpu", backend="reference", verify=verify)
    request = requested(GenerateRequest, (1, 2), settings_in(root), model=str(model), runtime=runtime, max_new_tokens=2)
    return drained(run(request))[0]


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def from_hub(root: Path) -> Path:
    cached_repo(settings_in(root).hf_cache, "Org/Model", commit="abc123")
    return converted("Org/Model", settings_in(root)).path


def from_folder(root: Path) -> Path:
    return converted(saved(root / "my model"), settings_in(root)).path


def quantized(root: Path) -> Path:
    request = QuantizeRequest(
        settings_in(root), model=str(from_folder(root)), storage=AllocationOptions("int8"), fidelity=False
    )
    return drained(quantize(request))[1].path


MAKERS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "from the hub": (
        from_hub,
        "gptfast download Org/Model --revision abc123 && gptfast convert Org/Model@abc123 --out {place} --force",
    ),
    "from a folder": (
        from_folder,
        "gptfast convert '{root}/my model' --out {place} --force",
    ),
    "quantized": (quantized, "gptfast quantize my-model --mode int8 --out {place} --force"),
}


@pytest.mark.parametrize("made", MAKERS)
def test_a_flipped_bit_is_named_by_tensor_with_the_command_that_makes_it_again(
    tmp_path: Path, made: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPTFAST_HOME", str(settings_in(tmp_path).home))
    make, command = MAKERS[made]
    place = make(tmp_path)
    part = "weight" if made != "quantized" else "codes"
    shard = next(path for path, name in holding(place) if name == f"layers.1.down.{part}")
    flip(shard, open_manifest_checkpoint(place).shards[shard.name].tensors[f"layers.1.down.{part}"].end - 1)
    with pytest.raises(CorruptError, match=rf"{shard.name}: layers\.1\.down\.{part}: .*SHA-256") as caught:
        generated(place, tmp_path)
    assert command.format(place=place, root=tmp_path) in caught.value.hint
    generated(place, tmp_path, verify=False)


def test_a_source_folder_that_is_gone_is_a_placeholder_in_the_hint(tmp_path: Path) -> None:
    place = from_folder(tmp_path)
    (tmp_path / "my model").rename(tmp_path / "elsewhere")
    flip(place / "weights-00001.safetensors", -1)
    with pytest.raises(CorruptError) as caught:
        generated(place, tmp_path)
    assert f"path of my-model: gptfast convert SOURCE --out {place} --force" in caught.value.hint


def holding(place: Path) -> list[tuple[Path, str]]:
    return [
        (place / file, name) for file, shard in open_manifest_checkpoint(place).shards.items() for name in shard.tensors
    ]


def test_a_sound_checkpoint_runs_after_all_of_its_bytes(tmp_path: Path) -> None:
    place = from_folder(tmp_path)
    done = [event for event in generated(place, tmp_path) if isinstance(event, Progress) and event.task == "verify"]
    assert done[-1].done == done[-1].total == open_manifest_checkpoint(place).n_bytes


def snapshot_with_blobs(root: Path) -> Path:
    """A snapshot as the hub's own library lays it out: links to files that are called by their SHA-256."""
    folder = cached_repo(settings_in(root).hf_cache, "Org/Model", commit="abc123")
    blobs = folder.parents[1] / "blobs"
    blobs.mkdir()
    file = folder / WEIGHTS
    blob = blobs / hashlib.sha256(file.read_bytes()).hexdigest()
    shutil.move(file, blob)
    file.symlink_to(blob)
    return folder


def test_a_snapshot_is_compared_with_the_hashes_of_the_hub(tmp_path: Path) -> None:
    folder = snapshot_with_blobs(tmp_path)
    assert any(isinstance(event, Progress) for event in generated("Org/Model", tmp_path))
    flip((folder / WEIGHTS).resolve(), -1)
    with pytest.raises(CorruptError, match=f"{WEIGHTS} .sha256 differs") as caught:
        generated("Org/Model", tmp_path)
    assert "gptfast download Org/Model --revision abc123" in caught.value.hint


def test_a_folder_without_hashes_says_what_has_them(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model")
    with pytest.raises(UsageError, match="no hash of it") as caught:
        generated(folder, tmp_path)
    assert f"gptfast convert {folder}" in caught.value.hint
