"""What every way of writing a checkpoint begins and ends with: a free place, room on the disk; the manifest, last."""

import hashlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from gptfast_cli.core.checkpoints.contents import Contents, TokenizerFiles
from gptfast_cli.core.checkpoints.manifest import MANIFEST_FILE, Manifest, StoredWeight, TokenizerEntry
from gptfast_cli.core.device import dtype_name
from gptfast_cli.core.errors import DiskFullError, UsageError
from gptfast_cli.core.files import sync_folder, write_synced
from gptfast_cli.core.quantities import size


def complete(folder: Path, contents: Contents, stored: Mapping[str, StoredWeight]) -> Manifest:
    """Add the tokenizer and, last, the manifest to a folder in which all weights are stored."""
    tokenizer = _copy_tokenizer(folder, contents.tokenizer) if contents.tokenizer else None
    dtype = dtype_name(contents.dtype)
    manifest = Manifest(contents.name, contents.config, dtype, stored, tokenizer, contents.provenance)
    sync_folder(folder)
    write_synced(folder / MANIFEST_FILE, manifest.to_json())
    return manifest


def check_place(folder: Path, *, force: bool) -> None:
    """Raise UsageError where a checkpoint must not go; an empty folder is a free place."""
    if not folder.exists() or (folder.is_dir() and next(folder.iterdir(), None) is None):
        return
    if not (folder / MANIFEST_FILE).is_file():
        raise UsageError(f"{folder}: is there already, and is no checkpoint.", "Give another place with --out.")
    if not force:
        raise UsageError(f"{folder}: holds a checkpoint already.", "Replace it with --force, or give another --out.")


def check_space(folder: Path, n_bytes: int) -> None:
    """Raise DiskFullError where a checkpoint of so many bytes has no room."""
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
    """Files by their way from the folder that holds all of them, with slashes."""
    if not files:
        return {}
    folder = os.path.commonpath([file.parent for file in files])
    return {file.relative_to(folder).as_posix(): file for file in files}
