"""Writing a checkpoint: shard by shard in bounded memory, the manifest last, the folder into place by a rename."""

import hashlib
import os
import shutil
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gptfast_cli.core.checkpoints.manifest import (
    MANIFEST_FILE,
    Manifest,
    Provenance,
    StoredPart,
    StoredWeight,
    TokenizerEntry,
    tensor_name,
)
from gptfast_cli.core.checkpoints.shard_writer import PlannedTensor, write_shard
from gptfast_cli.core.checkpoints.staging import staged_folder, sync_folder, write_synced
from gptfast_cli.core.config import ModelConfig
from gptfast_cli.core.device import dtype_name
from gptfast_cli.core.errors import DiskFullError, UsageError
from gptfast_cli.core.events import Job, Progress
from gptfast_cli.core.formats import Weight

SHARD_BYTES = 4_000_000_000


@dataclass(frozen=True, slots=True)
class PlannedWeight:
    """How a weight is going to be stored: scheme, logical shape, and the tensor of each part."""

    scheme: str
    shape: tuple[int, ...]
    parts: Mapping[str, PlannedTensor]

    @property
    def n_bytes(self) -> int:
        """Bytes of all parts."""
        return sum(part.n_bytes for part in self.parts.values())


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """A tokenizer to be copied into the checkpoint, and its special tokens as token ids.

    All files are in one folder, or in a folder inside of it, which is kept.
    """

    files: tuple[Path, ...]
    bos_id: int | None
    stop_ids: tuple[int, ...]
    add_bos: bool


@dataclass(frozen=True, slots=True)
class Contents:
    """What a checkpoint is going to hold; the weights stand in the order in which they are written."""

    name: str
    config: ModelConfig
    dtype: torch.dtype
    weights: Mapping[str, PlannedWeight]
    tokenizer: TokenizerFiles | None
    provenance: Provenance

    @property
    def n_bytes(self) -> int:
        """Bytes of all weights."""
        return sum(weight.n_bytes for weight in self.weights.values())


def write_checkpoint(
    folder: Path,
    contents: Contents,
    *,
    read: Callable[[str], Weight],
    force: bool,
    shard_bytes: int = SHARD_BYTES,
) -> Job[Manifest]:
    """Write a checkpoint to `folder`; `read` gives each weight when its turn comes, and only one is held at a time.

    A shard holds at most `shard_bytes`, or one weight. Until the end `folder` is as it was, whatever happens. Raises
    UsageError where something is there already (`force` replaces a checkpoint, and nothing else), DiskFullError
    where there is or turns out to be too little space.
    """
    check_place(folder, force=force)
    folder = folder.resolve()
    _check_space(folder, contents)
    with staged_folder(folder, replace=force) as staging:
        stored = yield from _write_weights(staging, contents, read, shard_bytes)
        tokenizer = _copy_tokenizer(staging, contents.tokenizer) if contents.tokenizer else None
        dtype = dtype_name(contents.dtype)
        manifest = Manifest(contents.name, contents.config, dtype, stored, tokenizer, contents.provenance)
        sync_folder(staging)
        write_synced(staging / MANIFEST_FILE, manifest.to_json())
    return manifest


def check_place(folder: Path, *, force: bool) -> None:
    """Raise UsageError where a checkpoint must not go; an empty folder is a free place."""
    if not folder.exists() or (folder.is_dir() and next(folder.iterdir(), None) is None):
        return
    if not (folder / MANIFEST_FILE).is_file():
        raise UsageError(f"{folder}: is there already, and is no checkpoint.", "Give another place with --out.")
    if not force:
        raise UsageError(f"{folder}: holds a checkpoint already.", "Replace it with --force, or give another --out.")


def _check_space(folder: Path, contents: Contents) -> None:
    parent = next(parent for parent in folder.parents if parent.exists())
    free = shutil.disk_usage(parent).free
    if contents.n_bytes > free:
        raise DiskFullError(
            f"{folder.name}: needs {contents.n_bytes / 1e9:.2f} GB in {parent}, and {free / 1e9:.2f} GB are free.",
            "Free some space, or write to another disk.",
        )


def _write_weights(
    staging: Path, contents: Contents, read: Callable[[str], Weight], shard_bytes: int
) -> Generator[Progress, None, dict[str, StoredWeight]]:
    stored: dict[str, StoredWeight] = {}
    done = 0
    for number, shard in enumerate(_shards(contents.weights, shard_bytes), start=1):
        file = f"weights-{number:05}.safetensors"
        planned = {tensor_name(name, part): plan for name, w in shard.items() for part, plan in w.parts.items()}
        digests: dict[str, str] = {}
        for tensor, sha256 in write_shard(staging / file, planned, _tensors(shard, read)):
            digests[tensor] = sha256
            done += planned[tensor].n_bytes
            yield Progress("write", done, contents.n_bytes, "bytes")
        for name, weight in shard.items():
            parts = {
                part: StoredPart(file, plan.code, plan.shape, digests[tensor_name(name, part)])
                for part, plan in weight.parts.items()
            }
            stored[name] = StoredWeight(weight.scheme, weight.shape, parts)
    return stored


def _shards(weights: Mapping[str, PlannedWeight], shard_bytes: int) -> Iterator[dict[str, PlannedWeight]]:
    """Cut the weights, in their order, into runs of at most `shard_bytes`, or of one weight."""
    shard: dict[str, PlannedWeight] = {}
    n_bytes = 0
    for name, weight in weights.items():
        if shard and n_bytes + weight.n_bytes > shard_bytes:
            yield shard
            shard, n_bytes = {}, 0
        shard[name] = weight
        n_bytes += weight.n_bytes
    yield shard


def _tensors(shard: Mapping[str, PlannedWeight], read: Callable[[str], Weight]) -> Iterator[tuple[str, Tensor]]:
    for name, planned in shard.items():
        weight = read(name)
        for part in planned.parts:
            yield tensor_name(name, part), weight.parts[part]
        del weight  # before the next one is made


def _copy_tokenizer(staging: Path, tokenizer: TokenizerFiles) -> TokenizerEntry:
    digests: dict[str, str] = {}
    for name, source in _by_name(tokenizer.files).items():
        content = source.read_bytes()
        (staging / name).parent.mkdir(exist_ok=True)
        with (staging / name).open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        sync_folder((staging / name).parent)
        digests[name] = hashlib.sha256(content).hexdigest()
    return TokenizerEntry(digests, tokenizer.bos_id, tokenizer.stop_ids, tokenizer.add_bos)


def _by_name(files: tuple[Path, ...]) -> dict[str, Path]:
    """Files by their way from the folder that holds all of them, with slashes."""
    if not files:
        return {}
    folder = os.path.commonpath([file.parent for file in files])
    return {file.relative_to(folder).as_posix(): file for file in files}
