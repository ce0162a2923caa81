"""Writing a checkpoint: planned contents, safetensors files, and last the manifest."""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from gptfast_cli.core.checkpoints.manifest import (
    MANIFEST_FILE,
    Manifest,
    ManifestTensor,
    ManifestWeight,
    Provenance,
    TokenizerEntry,
    tensor_name,
)
from gptfast_cli.core.checkpoints.shard import CODES, LENGTH_BYTES
from gptfast_cli.core.config import ModelConfig
from gptfast_cli.core.device import dtype_name
from gptfast_cli.core.errors import DiskFullError, UsageError
from gptfast_cli.core.files import sync_folder, write_synced
from gptfast_cli.core.quantities import size
from gptfast_cli.core.schemes import Weight

_ALIGNMENT = 64  # the first tensor starts on a cache line
_CHUNK_BYTES = 1 << 24


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """Dtype and shape of a tensor to be written."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def code(self) -> str:
        """The safetensors dtype code."""
        return CODES[self.dtype]

    @property
    def n_bytes(self) -> int:
        """Bytes of the tensor."""
        return math.prod(self.shape) * self.dtype.itemsize


def write_shard(
    path: Path, planned: Mapping[str, PlannedTensor], tensors: Iterator[tuple[str, Tensor]]
) -> Iterator[tuple[str, str]]:
    """Write the planned tensors, in their order, to a safetensors file and sync it.

    Yields (name, SHA-256) of each tensor once it is written.
    """
    with path.open("wb") as file:
        file.write(header(planned))
        for name, plan in planned.items():
            next_name, tensor = next(tensors)  # zip would keep the previous tensor in memory
            assert (next_name, tensor.dtype, tuple(tensor.shape)) == (name, plan.dtype, plan.shape), next_name
            sha256 = _write_bytes(file, tensor)
            del tensor
            yield name, sha256
        file.flush()
        os.fsync(file.fileno())


def header(planned: Mapping[str, PlannedTensor]) -> bytes:
    """Length and JSON header of a safetensors file with these tensors, contiguous and in this order."""
    entries: dict[str, object] = {}
    end = 0
    for name, plan in planned.items():
        start, end = end, end + plan.n_bytes
        entries[name] = {"dtype": plan.code, "shape": plan.shape, "data_offsets": [start, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(LENGTH_BYTES + len(text)) % _ALIGNMENT)
    return len(text).to_bytes(LENGTH_BYTES, "little") + text


def tensor_sha256(tensor: Tensor) -> str:
    """SHA-256 of a tensor's bytes as stored."""
    digest = hashlib.sha256()
    for chunk in _chunks(tensor):
        digest.update(chunk)
    return digest.hexdigest()


def _write_bytes(file: BinaryIO, tensor: Tensor) -> str:
    digest = hashlib.sha256()
    for chunk in _chunks(tensor):
        file.write(chunk)
        digest.update(chunk)
    return digest.hexdigest()


def _chunks(tensor: Tensor) -> Iterator[memoryview]:
    """A tensor's bytes, not copied, _CHUNK_BYTES at a time."""
    content = tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
    for start in range(0, len(content), _CHUNK_BYTES):
        yield content[start : start + _CHUNK_BYTES]


@dataclass(frozen=True, slots=True)
class PlannedWeight:
    """How a weight will be stored: scheme, logical shape, and the tensor of each part."""

    scheme: str
    shape: tuple[int, ...]
    parts: Mapping[str, PlannedTensor]

    @property
    def n_bytes(self) -> int:
        """Bytes of all parts."""
        return sum(part.n_bytes for part in self.parts.values())


def plan_weight(weight: Weight) -> PlannedWeight:
    """The plan to store a weight like this one, which may be on the meta device."""
    parts = {name: PlannedTensor(part.dtype, tuple(part.shape)) for name, part in weight.parts.items()}
    return PlannedWeight(weight.scheme, weight.shape, parts)


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """A tokenizer to copy into the checkpoint, with its special tokens as ids.

    The files are in one folder or its subfolders; their relative paths are kept.
    """

    files: tuple[Path, ...]
    bos_id: int | None
    stop_ids: tuple[int, ...]
    add_bos: bool


@dataclass(frozen=True, slots=True)
class Contents:
    """The contents of a checkpoint to be written; weights are in the order of writing."""

    name: str
    config: ModelConfig
    dtype: torch.dtype
    weights: Mapping[str, PlannedWeight]
    tokenizer: TokenizerFiles | None
    provenance: Provenance
    generation_config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def n_bytes(self) -> int:
        """Bytes of all weights."""
        return sum(weight.n_bytes for weight in self.weights.values())


def weights_file(number: int) -> str:
    """Name of weight file `number`, from 1."""
    return f"weights-{number:05}.safetensors"


def write_weights(
    path: Path, weights: Mapping[str, PlannedWeight], read: Callable[[str], Weight]
) -> Iterator[tuple[str, str, int]]:
    """Write a file of weights and sync it; `read` returns a weight by its name.

    Yields (name, SHA-256, bytes) of each tensor once it is written.
    """
    plan = planned_tensors(weights)
    for tensor, sha256 in write_shard(path, plan, _tensors(weights, read)):
        yield tensor, sha256, plan[tensor].n_bytes


def planned_tensors(weights: Mapping[str, PlannedWeight]) -> dict[str, PlannedTensor]:
    """Tensors of a weight file by name, in order."""
    return {tensor_name(name, part): plan for name, weight in weights.items() for part, plan in weight.parts.items()}


def stored_weights(
    file: str, weights: Mapping[str, PlannedWeight], digests: Mapping[str, str]
) -> dict[str, ManifestWeight]:
    """Manifest entries of the weights of a file; `digests`: SHA-256 by tensor name."""
    stored = {}
    for name, weight in weights.items():
        parts = {
            part: ManifestTensor(file, plan.code, plan.shape, digests[tensor_name(name, part)])
            for part, plan in weight.parts.items()
        }
        stored[name] = ManifestWeight(weight.scheme, weight.shape, parts)
    return stored


def _tensors(weights: Mapping[str, PlannedWeight], read: Callable[[str], Weight]) -> Iterator[tuple[str, Tensor]]:
    for name, plan in weights.items():
        weight = read(name)
        for part in plan.parts:
            yield tensor_name(name, part), weight.parts[part]
        del weight  # before the next is read


def finish_checkpoint(folder: Path, contents: Contents, stored: Mapping[str, ManifestWeight]) -> Manifest:
    """Add the tokenizer and, last, the manifest to a folder that holds all weights."""
    tokenizer = _copy_tokenizer(folder, contents.tokenizer) if contents.tokenizer else None
    dtype = dtype_name(contents.dtype)
    manifest = Manifest(
        contents.name,
        contents.config,
        dtype,
        stored,
        tokenizer,
        contents.provenance,
        generation_config=contents.generation_config,
    )
    sync_folder(folder)
    write_synced(folder / MANIFEST_FILE, manifest.to_json())
    return manifest


def check_target(folder: Path, *, force: bool) -> None:
    """Raise UsageError if a checkpoint must not be written there; an empty folder is free."""
    if not folder.exists() or (folder.is_dir() and next(folder.iterdir(), None) is None):
        return
    if not (folder / MANIFEST_FILE).is_file():
        raise UsageError(f"{folder}: exists, and is no checkpoint.", "Give another folder with --out.")
    if not force:
        raise UsageError(f"{folder}: holds a checkpoint already.", "Replace it with --force, or give another --out.")


def check_space(folder: Path, n_bytes: int) -> None:
    """Raise DiskFullError if there is no room for `n_bytes`."""
    parent = next(parent for parent in folder.parents if parent.exists())
    free = shutil.disk_usage(parent).free
    if n_bytes > free:
        raise DiskFullError(
            f"{folder.name}: needs {size(n_bytes)} in {parent}, and {size(free)} are free.",
            "Free some space, or write to another disk.",
        )


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
    """Files by their POSIX path relative to their common folder."""
    if not files:
        return {}
    folder = os.path.commonpath([file.parent for file in files])
    return {file.relative_to(folder).as_posix(): file for file in files}
