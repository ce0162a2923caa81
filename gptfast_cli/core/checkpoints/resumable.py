"""Resumable writing of a checkpoint, block by block: an interrupted run continues with the next block.

A block is a file of weights. Once it is synced to disk, the SHA-256 of its tensors are written beside it; a block whose
bytes do not match is written again. The result is bit-identical, however often it was interrupted.
"""

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from gptfast_cli.core.checkpoints.manifest import Manifest, ManifestWeight, read_manifest, tensor_name
from gptfast_cli.core.checkpoints.shard import Shard, open_shard
from gptfast_cli.core.checkpoints.staging import staged_folder
from gptfast_cli.core.checkpoints.writer import (
    Contents,
    PlannedWeight,
    check_space,
    check_target,
    finish_checkpoint,
    planned_tensors,
    stored_weights,
    tensor_sha256,
    weights_file,
    write_weights,
)
from gptfast_cli.core.errors import CorruptError, UsageError
from gptfast_cli.core.events import Job, Note, Progress
from gptfast_cli.core.fields import read_fields
from gptfast_cli.core.files import write_synced
from gptfast_cli.core.schemes import Weight

SHARD_BYTES = 4_000_000_000


class BlockWriter:
    """Writes a checkpoint in blocks; a block is a list of consecutive weight names."""

    def __init__(self, folder: Path, contents: Contents, blocks: Sequence[Sequence[str]]) -> None:
        self._folder = folder
        self._contents = contents
        self._plans = [{name: contents.weights[name] for name in block} for block in blocks]
        self._stored: dict[int, dict[str, ManifestWeight]] = {}
        for number, plan in enumerate(self._plans):
            digests = self._digests(number)
            if digests is not None:
                self._stored[number] = stored_weights(self._file(number).name, plan, digests)

    @property
    def n_found(self) -> int:
        """Number of finished blocks, of this run and earlier ones."""
        return len(self._stored)

    @property
    def missing_bytes(self) -> int:
        """Bytes of the weights of unfinished blocks."""
        return sum(
            weight.n_bytes
            for number, plan in enumerate(self._plans)
            if number not in self._stored
            for weight in plan.values()
        )

    def has(self, number: int) -> bool:
        """Whether a block is finished."""
        return number in self._stored

    def write(self, number: int, read: Callable[[str], Weight]) -> None:
        """Write and sync a block; `read` returns a weight by its name."""
        for _ in self.steps(number, read):
            pass

    def steps(self, number: int, read: Callable[[str], Weight]) -> Iterator[int]:
        """Like `write`, one tensor at a time; yields the bytes of each."""
        file, plan, digests = self._file(number), self._plans[number], {}
        for tensor, sha256, n_bytes in write_weights(file, plan, read):
            digests[tensor] = sha256
            yield n_bytes
        write_synced(_digest_file(file), json.dumps(digests))
        self._stored[number] = stored_weights(file.name, plan, digests)

    def weights(self, number: int) -> dict[str, Weight]:
        """The weights of a finished block, memory-mapped."""
        shard = open_shard(self._file(number))
        return {
            name: Weight(plan.scheme, plan.shape, {part: shard.tensor(tensor_name(name, part)) for part in plan.parts})
            for name, plan in self._plans[number].items()
        }

    def finish(self) -> None:
        """Write the manifest, once every block is finished."""
        numbers = range(len(self._plans))
        stored = {name: weight for number in numbers for name, weight in self._stored[number].items()}
        finish_checkpoint(self._folder, self._contents, stored)
        for number in numbers:
            _digest_file(self._file(number)).unlink()

    def _file(self, number: int) -> Path:
        return self._folder / weights_file(number + 1)

    def _digests(self, number: int) -> dict[str, str] | None:
        """SHA-256 of each tensor of a finished block; None if it is missing or damaged."""
        file, plan = self._file(number), planned_tensors(self._plans[number])
        try:
            fields, shard = read_fields(_digest_file(file)), open_shard(file)
            digests = {tensor: fields.text(tensor) for tensor in plan}
        except (CorruptError, OSError):
            return None
        is_planned = {tensor: (at.dtype, at.shape) for tensor, at in shard.tensors.items()} == {
            tensor: (at.code, at.shape) for tensor, at in plan.items()
        }
        return digests if is_planned and all(_is_as_written(shard, *each) for each in digests.items()) else None


@contextlib.contextmanager
def resumable_checkpoint(
    folder: Path, contents: Contents, blocks: Sequence[Sequence[str]], *, identity: str, force: bool
) -> Iterator[BlockWriter]:
    """A writer for the blocks of `contents`; when the `with` block succeeds, `folder` is the checkpoint.

    Until then `folder` is unchanged, and finished blocks are kept for a run of the same identity, except after an error
    of the source. Raises UsageError if the folder exists (`force` replaces a checkpoint, and nothing else) or another
    process is writing it, DiskFullError before or during writing.
    """
    check_target(folder, force=force)
    folder = folder.resolve()
    with staged_folder(folder, identity, replace=force) as staging:
        writer = BlockWriter(staging, contents, blocks)
        check_space(folder, writer.missing_bytes)
        try:
            yield writer
        except (CorruptError, UsageError):
            shutil.rmtree(staging, ignore_errors=True)
            raise
        writer.finish()


def write_checkpoint(
    folder: Path,
    contents: Contents,
    read: Callable[[str], Weight],
    *,
    identity: str,
    force: bool,
    shard_bytes: int = SHARD_BYTES,
) -> Job[Manifest]:
    """Write a checkpoint in shards of at most `shard_bytes`, or of one weight; see `resumable_checkpoint`.

    `read` returns a weight by its name; one is in memory at a time.
    """
    blocks = list(_shards(contents.weights, shard_bytes))
    with resumable_checkpoint(folder, contents, blocks, identity=identity, force=force) as writer:
        if writer.n_found:
            yield Note(f"Resuming: {writer.n_found} of {len(blocks)} files were finished by an earlier run.")
        try:
            yield from _write_missing(writer, len(blocks), contents.n_bytes, read)
        except KeyboardInterrupt:
            yield Note("Interrupted. Finished files are kept: run the same command again to resume.")
            raise
    return read_manifest(folder)


def _write_missing(writer: BlockWriter, n_blocks: int, total: int, read: Callable[[str], Weight]) -> Iterator[Progress]:
    done = total - writer.missing_bytes
    for number in range(n_blocks):
        if not writer.has(number):
            for n_bytes in writer.steps(number, read):
                done += n_bytes
                yield Progress("write", done, total, "bytes")


def _shards(weights: Mapping[str, PlannedWeight], shard_bytes: int) -> Iterator[list[str]]:
    """Consecutive weights in shards of at most `shard_bytes`, or of one weight."""
    shard: list[str] = []
    total = 0
    for name, weight in weights.items():
        if shard and total + weight.n_bytes > shard_bytes:
            yield shard
            shard, total = [], 0
        shard.append(name)
        total += weight.n_bytes
    yield shard


def _digest_file(file: Path) -> Path:
    return file.with_suffix(".sha256.json")


def _is_as_written(shard: Shard, tensor: str, sha256: str) -> bool:
    return tensor_sha256(shard.tensor(tensor)) == sha256
