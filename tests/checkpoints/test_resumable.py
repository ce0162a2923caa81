"""A checkpoint written block by block is whole or not there, and a run goes on where the one before it ended."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from gptfast_cli.core.checkpoints.manifest import Provenance
from gptfast_cli.core.checkpoints.reader import open_manifest_checkpoint
from gptfast_cli.core.checkpoints.resumable import BlockWriter, resumable_checkpoint
from gptfast_cli.core.checkpoints.writer import Contents, plan_weight
from gptfast_cli.core.errors import DiskFullError, UsageError
from gptfast_cli.core.families import families
from gptfast_cli.core.models.weights import weight_blocks, weight_shapes
from gptfast_cli.core.schemes import Weight
from gptfast_cli.core.schemes.plain import plain
from llama_oracle import random_llama

CONFIG = families["llama"].config(random_llama().config.to_dict())
BLOCKS = weight_blocks(CONFIG)


class StoppedError(Exception):
    """Ends a run in the middle."""


def contents() -> Contents:
    outlines = {name: plain(torch.empty(shape, device="meta")) for name, shape in weight_shapes(CONFIG).items()}
    weights = {name: plan_weight(meta_weight) for name, meta_weight in outlines.items()}
    return Contents("m", CONFIG, torch.float32, weights, None, Provenance("m", None, "test"))


def weight(name: str) -> Weight:
    """Something that differs from weight to weight."""
    return plain(torch.full(weight_shapes(CONFIG)[name], float(sum(name.encode()) % 100)))


def write(
    folder: Path, *, until: int = len(BLOCKS), identity: str = "a", read: Callable[[str], Weight] = weight
) -> list[int]:
    """Write what is missing of the first blocks, and end well where these are all; returns which were missing."""
    missing = []
    with resumable_checkpoint(folder, contents(), BLOCKS, identity=identity, force=False) as writer:
        for number in range(until):
            if not writer.has(number):
                missing.append(number)
                writer.write(number, read)
        if until < len(BLOCKS):
            raise StoppedError
    return missing


def stopped_after(folder: Path, n_blocks: int, **options: str) -> Path:
    """The folder in which a run that ended after some blocks has left them."""
    with pytest.raises(StoppedError):
        write(folder, until=n_blocks, **options)
    (left,) = [path for path in folder.parent.iterdir() if path.name.endswith("gptfast-resumable")]
    return left


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_run_goes_on_behind_the_finished_blocks_and_ends_with_the_same_bytes(tmp_path: Path) -> None:
    assert write(tmp_path / "once") == [0, 1, 2, 3, 4]
    stopped_after(tmp_path / "m", 2)
    assert not (tmp_path / "m").exists()
    assert write(tmp_path / "m") == [2, 3, 4]
    assert files_in(tmp_path / "m") == files_in(tmp_path / "once")
    assert list(open_manifest_checkpoint(tmp_path / "m").verify())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m", "once"]


def test_each_block_is_a_file_of_its_own(tmp_path: Path) -> None:
    write(tmp_path / "m")
    manifest = open_manifest_checkpoint(tmp_path / "m").manifest
    for number, block in enumerate(BLOCKS, start=1):
        files = {part.file for name in block for part in manifest.weights[name].parts.values()}
        assert files == {f"weights-{number:05}.safetensors"}


def test_finished_blocks_are_read_back_as_they_were_written(tmp_path: Path) -> None:
    writer = BlockWriter(tmp_path, contents(), BLOCKS)
    writer.write(1, weight)
    found = BlockWriter(tmp_path, contents(), BLOCKS)
    assert (found.n_found, found.has(0), found.has(1)) == (1, False, True)
    for name, read in found.weights(1).items():
        assert torch.equal(read.parts["weight"], weight(name).parts["weight"])


@pytest.mark.parametrize("damage", ["a byte of a weight", "cut short", "a digest cut short", "no digest", "no file"])
def test_a_block_that_is_not_as_it_was_written_is_written_again(tmp_path: Path, damage: str) -> None:
    left = stopped_after(tmp_path / "m", 3)
    file, digests = left / "weights-00002.safetensors", left / "weights-00002.sha256.json"
    content = bytearray(file.read_bytes())
    match damage:
        case "a byte of a weight":
            content[-1] ^= 1
            file.write_bytes(content)
        case "cut short":
            file.write_bytes(content[:-1])
        case "a digest cut short":
            digests.write_text(digests.read_text()[:-20])
        case "no digest":
            digests.unlink()
        case "no file":
            file.unlink()
    assert write(tmp_path / "m") == [1, 3, 4]
    assert list(open_manifest_checkpoint(tmp_path / "m").verify())


def test_other_work_for_the_same_place_begins_anew_and_clears_away(tmp_path: Path) -> None:
    left = stopped_after(tmp_path / "m", 3)
    elsewhere = stopped_after(tmp_path / "deeper" / "m", 3)
    assert write(tmp_path / "m", identity="b") == [0, 1, 2, 3, 4]
    assert not left.exists() and elsewhere.exists()


def test_work_for_another_place_is_left_alone_for_two_weeks(tmp_path: Path) -> None:
    left = stopped_after(tmp_path / "m", 3)
    age = left.stat().st_mtime - 13 * 24 * 3600
    os.utime(left, (age, age))
    write(tmp_path / "other")
    assert left.exists()
    os.utime(left, (age - 2 * 24 * 3600, age - 2 * 24 * 3600))
    write(tmp_path / "third")
    assert not left.exists()


def test_work_that_another_process_is_at_is_refused(tmp_path: Path) -> None:
    with resumable_checkpoint(tmp_path / "m", contents(), BLOCKS, identity="a", force=False) as writer:
        writer.write(0, weight)
        with pytest.raises(UsageError, match="being written by another gptfast"):
            write(tmp_path / "m")
        for number in range(1, len(BLOCKS)):
            writer.write(number, weight)
    assert list(open_manifest_checkpoint(tmp_path / "m").verify())


def test_room_is_needed_for_the_missing_blocks_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped_after(tmp_path / "m", 4)
    usage = shutil.disk_usage(tmp_path)
    last_block = 4 * sum(weight(name).parts["weight"].numel() for name in BLOCKS[4])
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=last_block - 1))
    with pytest.raises(DiskFullError, match=r"m: needs"):
        write(tmp_path / "m")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=last_block))
    assert write(tmp_path / "m") == [4]


def test_a_disk_that_runs_full_keeps_what_is_finished(tmp_path: Path) -> None:
    def full(name: str) -> Weight:
        if name.startswith("layers.2."):
            raise OSError(28, "No space left on device")
        return weight(name)

    with pytest.raises(DiskFullError, match="ran full while it was being written; what is finished was kept"):
        write(tmp_path / "m", read=full)
    assert write(tmp_path / "m") == [3, 4]
