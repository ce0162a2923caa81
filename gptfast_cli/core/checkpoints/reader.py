"""Opening a checkpoint: a folder with a manifest and memory-mapped safetensors shards, or another layout in place."""

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gptfast_cli.core.checkpoints.checkpoint import Checkpoint, LocatedTensor, read_generation_config
from gptfast_cli.core.checkpoints.downloads import FETCH_AGAIN, REBUILD, fetch_command, with_fetch_command
from gptfast_cli.core.checkpoints.foreign import CONFIG_FILE
from gptfast_cli.core.checkpoints.lora import is_adapter, refuse_adapter
from gptfast_cli.core.checkpoints.manifest import (
    MANIFEST_FILE,
    CalibrationText,
    Manifest,
    TokenizerEntry,
    read_manifest,
    sha256_of,
    tensor_name,
)
from gptfast_cli.core.checkpoints.methods import method_of
from gptfast_cli.core.checkpoints.quantization_config import read_quantization_config
from gptfast_cli.core.checkpoints.resolve import source_of
from gptfast_cli.core.checkpoints.shard import DTYPES as SAFETENSORS_DTYPES
from gptfast_cli.core.checkpoints.shard import Shard, advise_random_access, open_shard
from gptfast_cli.core.checkpoints.sources import sources_by_rank
from gptfast_cli.core.checkpoints.store import recorded_source
from gptfast_cli.core.config import ModelConfig
from gptfast_cli.core.device import DTYPES
from gptfast_cli.core.errors import CorruptError, NotFoundError
from gptfast_cli.core.events import Progress
from gptfast_cli.core.models.weights import weight_shapes
from gptfast_cli.core.schemes import Block, Weight, schemes
from gptfast_cli.core.settings import load_settings

_SMALL = 1024
"""Bytes of a part that an outline holds as it is, such as the values of codes."""

_DIFFERS = "its bytes have changed since they were written (SHA-256 differs)"


@dataclass(frozen=True, slots=True)
class ManifestCheckpoint:
    """A Checkpoint in gptfast's own format."""

    path: Path
    manifest: Manifest
    shards: Mapping[str, Shard]

    @property
    def name(self) -> str:
        return self.manifest.name

    @property
    def config(self) -> ModelConfig:
        return self.manifest.config

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.manifest.dtype]

    @property
    def scheme(self) -> str:
        return self.manifest.scheme

    @property
    def stored_as(self) -> str:
        return self.manifest.stored_as

    @property
    def n_bytes(self) -> int:
        return self.manifest.n_bytes

    @property
    def n_params(self) -> int:
        return self.manifest.n_params

    @property
    def special_tokens(self) -> TokenizerEntry | None:
        return self.manifest.tokenizer

    @property
    def calibration(self) -> CalibrationText | None:
        return self.manifest.provenance.calibration

    @property
    def generation_config(self) -> Mapping[str, Any]:
        recorded = self.manifest.generation_config
        return read_generation_config(self.path) if recorded is None else recorded

    @property
    def files(self) -> tuple[Path, ...]:
        return tuple(shard.path for shard in self.shards.values())

    @property
    def notes(self) -> tuple[str, ...]:
        return ()

    def outline(self, name: str) -> Weight:
        stored = self.manifest.weights[name]
        parts = {
            part: self.shards[at.file].tensor(tensor_name(name, part))
            if at.n_bytes <= _SMALL
            else torch.empty(at.shape, dtype=SAFETENSORS_DTYPES[at.dtype], device="meta")
            for part, at in stored.parts.items()
        }
        return Weight(stored.scheme, stored.shape, parts)

    def weight(self, name: str, block: Block | None = None) -> Weight:
        stored = self.manifest.weights[name]
        parts = {part: self.shards[at.file].tensor(tensor_name(name, part)) for part, at in stored.parts.items()}
        if block is None:
            return Weight(stored.scheme, stored.shape, parts)
        touched = {part: advise_random_access(tensor) for part, tensor in parts.items()}
        return Weight(stored.scheme, stored.shape, touched).block(block)

    def tensors(self, name: str) -> Iterator[LocatedTensor]:
        for part, at in self.manifest.weights[name].parts.items():
            tensor = tensor_name(name, part)
            yield LocatedTensor(f"{at.file}: {tensor}", self.shards[at.file].tensor(tensor))

    def verify(self) -> Iterator[Progress]:
        """Compare the hashes of the manifest."""
        done, restore = 0, _restore_hint(self)
        for name, weight in self.manifest.weights.items():
            for part, at in weight.parts.items():
                stored = self.shards[at.file].tensors[tensor_name(name, part)]
                if sha256_of(self.path / at.file, stored.start, stored.end) != at.sha256:
                    raise CorruptError(f"{at.file}: {tensor_name(name, part)}: {_DIFFERS}", restore)
                done += at.n_bytes
                yield Progress("verify", done, self.n_bytes, "bytes")
        for file, sha256 in (self.manifest.tokenizer.files if self.manifest.tokenizer else {}).items():
            path = self.path / file
            if not path.is_file():
                raise CorruptError(f"{file}: missing in {self.path}", restore)
            if sha256_of(path) != sha256:
                raise CorruptError(f"{file}: {_DIFFERS}", restore)


def open_checkpoint(path: Path, *, allow_pickle: bool = False) -> Checkpoint:
    """Open a checkpoint, or a folder or file of another layout in place.

    Headers are read and checked, weights are not. Raises NotFoundError if there is no model, CorruptError for
    inconsistent files and for a pickle without `allow_pickle`, UsageError for an unsupported model.
    """
    try:
        return _opened(path, allow_pickle=allow_pickle)
    except CorruptError as error:
        raise with_fetch_command(error, path) from error.__cause__


def _opened(path: Path, *, allow_pickle: bool) -> Checkpoint:
    if (path / MANIFEST_FILE).is_file():
        return open_manifest_checkpoint(path)
    by_rank = sources_by_rank()
    for source in by_rank:
        if source.holds(path):
            return source.open(path, allow_pickle=allow_pickle)
    if is_adapter(path):
        raise refuse_adapter(path)
    looked_for = ", ".join([MANIFEST_FILE, *(source.looks_for for source in by_rank)])
    if (path / CONFIG_FILE).is_file():
        if (declared := read_quantization_config(path)) is not None:
            method_of(declared)  # whose files may have names of their own
        raise CorruptError(f"{path}: has a config.json but no weights (looked for {looked_for}).", FETCH_AGAIN)
    hint = "Name the folder that holds these files." if path.is_dir() else "Name a folder, or a .bin or .pth file."
    raise NotFoundError(f"{path}: holds no model (looked for {looked_for}).", hint)


def open_manifest_checkpoint(folder: Path) -> ManifestCheckpoint:
    """Open a folder with a manifest; errors as in `open_checkpoint`."""
    manifest = read_manifest(folder)
    files = sorted({part.file for weight in manifest.weights.values() for part in weight.parts.values()})
    for file in files:
        if not (folder / file).is_file():
            raise CorruptError(f"{file}: missing in {folder}", REBUILD)
    shards = {file: open_shard(folder / file) for file in files}
    _check_weights(manifest)
    _check_shards(manifest, shards)
    checkpoint = ManifestCheckpoint(folder, manifest, shards)
    _check_parts(checkpoint)
    return checkpoint


def _check_weights(manifest: Manifest) -> None:
    expected = weight_shapes(manifest.config)
    for name, shape in expected.items():
        if name not in manifest.weights:
            raise CorruptError(f"{MANIFEST_FILE}: weights: {name} is missing", REBUILD)
        found = manifest.weights[name].shape
        if found != shape:
            raise CorruptError(f"{MANIFEST_FILE}: weights.{name}: shape is {list(found)}, not {list(shape)}", REBUILD)
    extra = sorted(set(manifest.weights) - set(expected))
    if extra:
        raise CorruptError(f"{MANIFEST_FILE}: weights: {extra[0]} does not belong to this model", REBUILD)


def _check_shards(manifest: Manifest, shards: Mapping[str, Shard]) -> None:
    extra = {(file, tensor) for file, shard in shards.items() for tensor in shard.tensors}
    for name, weight in manifest.weights.items():
        for part, at in weight.parts.items():
            tensor = tensor_name(name, part)
            stored = shards[at.file].tensors.get(tensor)
            if stored is None:
                raise CorruptError(f"{at.file}: {tensor}: missing", REBUILD)
            if (stored.dtype, stored.shape) != (at.dtype, at.shape):
                raise CorruptError(
                    f"{at.file}: {tensor}: is {stored.dtype} {list(stored.shape)}, "
                    f"and {at.dtype} {list(at.shape)} in {MANIFEST_FILE}",
                    REBUILD,
                )
            extra.discard((at.file, tensor))
    if extra:
        file, tensor = min(extra)
        raise CorruptError(f"{file}: {tensor}: not in {MANIFEST_FILE}", REBUILD)


def _check_parts(checkpoint: ManifestCheckpoint) -> None:
    for name, stored in checkpoint.manifest.weights.items():
        if stored.scheme not in schemes or not schemes[stored.scheme].is_whole(checkpoint.weight(name)):
            why = f"weights.{name}: its parts are not those of scheme {stored.scheme!r}"
            raise CorruptError(f"{MANIFEST_FILE}: {why}", REBUILD)


def _restore_hint(checkpoint: ManifestCheckpoint) -> str:
    """The commands that download or rebuild the checkpoint in place, from its manifest."""
    fetch = fetch_command(checkpoint.path)
    if fetch is not None:
        return f"Fetch it again: {fetch}"
    origin = checkpoint.manifest.provenance
    source, target = shlex.quote(origin.source), f"--out {shlex.quote(str(checkpoint.path))} --force"
    settings = load_settings()
    if origin.adapter is not None:
        adapter = recorded_source(settings.home, origin.adapter.sha256)
        target = f"--lora {'ADAPTER' if adapter is None else shlex.quote(str(adapter))} {target}"
    if origin.rounding is not None:
        found = source_of(origin, settings)
        source = source if found is None else shlex.quote(found.name)
        return f"Quantize it again: gptfast quantize {source} --mode {checkpoint.scheme} {target}"
    if (path := recorded_source(settings.home, origin.recipe)) is not None:
        return f"Convert it again: gptfast convert {shlex.quote(str(path))} {target}"
    if origin.revision is None:  # only the name of a folder
        return f"Convert it again, where SOURCE is the path of {source}: gptfast convert SOURCE {target}"
    revision = shlex.quote(origin.revision)
    fetch = f"gptfast download {source} --revision {revision}"
    return f"Fetch it again: {fetch} && gptfast convert {source}@{revision} {target}"
