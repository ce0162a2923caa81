"""An open checkpoint maps its weights, notices every flipped byte, and is refused where its files disagree."""

import os
import shutil
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from gptfast_cli.core.checkpoints.manifest import MANIFEST_FILE, tensor_name
from gptfast_cli.core.checkpoints.reader import open_checkpoint, open_manifest_checkpoint
from gptfast_cli.core.checkpoints.shard import open_shard
from gptfast_cli.core.checkpoints.writer import PlannedTensor, header
from gptfast_cli.core.errors import CorruptError, NotFoundError
from gptfast_cli.core.models.weights import weight_shapes
from llama_oracle import SHAPES
from model_files import converted, edit_header, edit_json, edit_tensors, saved, settings_in

SHARD = "weights-00001.safetensors"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sound")
    return converted(saved(root / "model"), settings_in(root)).path


@pytest.fixture
def folder(tmp_path: Path, sound: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "copy"))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_folder_in_place_and_its_conversion_hold_the_same(tmp_path: Path, shape: str) -> None:
    source = saved(tmp_path / "model", **SHAPES[shape])
    theirs = open_checkpoint(source)
    ours = open_checkpoint(converted(source, settings_in(tmp_path)).path)
    facts = ("config", "dtype", "scheme", "n_bytes", "n_params", "name")
    assert [getattr(ours, fact) for fact in facts] == [getattr(theirs, fact) for fact in facts]
    for name, expected in weight_shapes(ours.config).items():
        assert ours.weight(name).shape == theirs.weight(name).shape == expected
        assert torch.equal(ours.weight(name).parts["weight"], theirs.weight(name).parts["weight"])


def test_a_weight_outlives_its_checkpoint(sound: Path) -> None:
    weight = open_checkpoint(sound).weight("norm").parts["weight"]
    assert weight.sum().isfinite()


def test_a_file_larger_than_the_memory_is_read(tmp_path: Path) -> None:
    """A sparse file of the format: hardly any of it is on the disk."""
    n = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")  # bytes of memory
    planned = {"before": (torch.uint8, n), "middle": (torch.float32, 2), "after": (torch.bfloat16, n // 2)}
    start = header({name: PlannedTensor(dtype, (size,)) for name, (dtype, size) in planned.items()})
    file = tmp_path / "large.safetensors"
    with file.open("wb") as opened:
        opened.write(start)
        opened.seek(len(start) + n)
        opened.write(struct.pack("<2f", 1.5, 2.5))
        opened.truncate(len(start) + 2 * n + 8)
    shard = open_shard(file)
    assert shard.tensor("middle").tolist() == [1.5, 2.5]
    assert shard.tensor("before")[-1] == shard.tensor("after")[-1] == 0


def test_a_tensor_beyond_2_gib_is_read(tmp_path: Path) -> None:
    """Offsets and sizes past an int of C, in a sparse file, on machines of any memory."""
    n = 2**31 + 8
    start = header({"before": PlannedTensor(torch.uint8, (n,)), "after": PlannedTensor(torch.float32, (2,))})
    file = tmp_path / "large.safetensors"
    with file.open("wb") as opened:
        opened.write(start)
        opened.seek(len(start) + n)
        opened.write(struct.pack("<2f", 1.5, 2.5))
    shard = open_shard(file)
    assert shard.tensor("before").shape == (n,)
    assert shard.tensor("after").tolist() == [1.5, 2.5]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_tensors_of_a_file_keep_neither_a_handle_nor_their_mapping(folder: Path) -> None:
    def held() -> tuple[int, int]:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8")
        return len(list(Path("/proc/self/fd").iterdir())), maps.count(SHARD)

    shard = open_shard(folder / SHARD)
    n_handles, n_mapped = held()
    tensors = [shard.tensor(name) for name in shard.tensors]
    assert held() == (n_handles, n_mapped + len(tensors))
    del tensors
    assert held() == (n_handles, n_mapped)


def test_a_file_that_was_made_shorter_after_it_was_opened_is_refused(folder: Path) -> None:
    shard = open_shard(folder / SHARD)
    with (folder / SHARD).open("r+b") as opened:
        opened.truncate(100)
    with pytest.raises(CorruptError, match=f"{SHARD}: was truncated since it was opened"):
        shard.tensor(next(iter(shard.tensors)))


def test_bytes_read_are_the_bytes_that_the_manifest_counts(sound: Path) -> None:
    checkpoint = open_checkpoint(sound)
    assert checkpoint.n_bytes == sum(checkpoint.weight(name).n_bytes for name in weight_shapes(checkpoint.config))


def test_every_flipped_byte_of_the_weights_is_noticed(folder: Path) -> None:
    checkpoint = open_manifest_checkpoint(folder)
    content = bytearray((folder / SHARD).read_bytes())
    for weight in ("embedding", "layers.1.gate_up", "head"):
        stored = checkpoint.shards[SHARD].tensors[tensor_name(weight, "weight")]
        for position in (stored.start, stored.end - 1):
            content[position] ^= 1
            (folder / SHARD).write_bytes(content)
            with pytest.raises(CorruptError, match=rf"{SHARD}: {weight}\.weight"):
                list(checkpoint.verify())
            content[position] ^= 1


def test_progress_of_verifying_ends_at_all_bytes(sound: Path) -> None:
    *_, last = open_manifest_checkpoint(sound).verify()
    assert last.done == last.total == open_manifest_checkpoint(sound).n_bytes


SPOILT: dict[str, tuple[Callable[[Path], object], str]] = {
    "a shard missing": (lambda f: (f / SHARD).unlink(), f"{SHARD}: missing"),
    "a shard cut short": (lambda f: (f / SHARD).write_bytes((f / SHARD).read_bytes()[:-4]), f"{SHARD}: head.weight"),
    "a tensor missing": (lambda f: edit_tensors(f / SHARD, lambda t: t.pop("norm.weight")), f"{SHARD}: norm.weight"),
    "a tensor too many": (
        lambda f: edit_tensors(f / SHARD, lambda t: t.update(more=torch.ones(1))),
        f"{SHARD}: more",
    ),
    "a tensor of another dtype": (
        lambda f: edit_tensors(f / SHARD, lambda t: t.update({"norm.weight": t["norm.weight"].half()})),
        f"{SHARD}: norm.weight: is F16",
    ),
    "a tensor twice": (
        lambda f: edit_header(f / SHARD, lambda h: h.replace("layers.0.ffn_norm", "layers.0.attention_norm")),
        f"{SHARD}.*layers.0.attention_norm.weight is there twice",
    ),
    "a weight missing in the manifest": (
        lambda f: edit_json(f / MANIFEST_FILE, lambda m: m["weights"].pop("norm")),
        f"{MANIFEST_FILE}: weights: norm",
    ),
    "a weight too many in the manifest": (
        lambda f: edit_json(f / MANIFEST_FILE, lambda m: m["weights"].update(more=m["weights"]["norm"])),
        f"{MANIFEST_FILE}: weights: more",
    ),
    "a weight of another shape": (
        lambda f: edit_json(f / MANIFEST_FILE, lambda m: m["config"].update(vocab_size=102)),
        rf"{MANIFEST_FILE}: weights.embedding: shape is \[101, 36\], not \[102, 36\]",
    ),
}


@pytest.mark.parametrize("case", SPOILT)
def test_files_that_disagree_are_named(folder: Path, case: str) -> None:
    spoil, named = SPOILT[case]
    spoil(folder)
    with pytest.raises(CorruptError, match=named):
        open_checkpoint(folder)


def test_a_folder_without_a_model_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"gptfast\.json, config\.json"):
        open_checkpoint(tmp_path)


def resident(kind: str) -> float:
    """Resident memory of this process in MiB: all of it, or what is not mapped from a file."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith(kind))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_reading_a_tensor_keeps_no_second_copy_of_it(tmp_path: Path) -> None:
    save_file({"big": torch.ones(64, 1 << 18)}, tmp_path / "big.safetensors")  # 64 MiB
    all_before, own_before = resident("VmRSS"), resident("RssAnon")
    tensor = open_shard(tmp_path / "big.safetensors").tensor("big")
    assert resident("VmRSS") - all_before < 8  # nothing is read before it is touched
    tensor.sum()
    assert 56 < resident("VmRSS") - all_before < 80
    assert resident("RssAnon") - own_before < 8
    del tensor
    assert resident("VmRSS") - all_before < 16  # the mapping goes with the tensor


@pytest.mark.parametrize("scheme", ["int8", "int4", "no-such-scheme"])
def test_parts_of_another_scheme_than_the_manifest_says_are_refused(tmp_path: Path, scheme: str) -> None:
    stored = converted(saved(tmp_path / "model"), settings_in(tmp_path)).path
    edit_json(stored / MANIFEST_FILE, lambda manifest: manifest["weights"]["layers.1.qkv"].update(scheme=scheme))
    with pytest.raises(CorruptError, match=f"layers.1.qkv: its parts are not those of scheme '{scheme}'"):
        open_checkpoint(stored)
