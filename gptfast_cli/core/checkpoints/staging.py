"""Files and folders that appear whole or not at all: written under another name beside their place, then renamed.

What a killed process left behind is swept when the next one writes beside it. A folder still being written is
known by a lock that its writer holds, which the system lets go of with the process, however it ends.
"""

import contextlib
import errno
import os
import secrets
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from gptfast_cli.core.errors import DiskFullError, UsageError

if sys.platform != "win32":
    import fcntl

_PARTIAL = ".gptfast-partial"
_REPLACED = ".gptfast-replaced"


@contextlib.contextmanager
def staged_folder(place: Path, *, replace: bool) -> Iterator[Path]:
    """A new folder beside `place`, to be filled by the block; it goes to `place` when the block ends well.

    Whatever happens, `place` is as it was before or new and whole. With `replace` a folder that stands there gives
    way. Raises DiskFullError where the disk ran full, UsageError where something else took the place meanwhile.
    """
    staging, lock = _begin(place)
    try:
        with disk_full_named(place):
            yield staging
            sync_folder(staging)
            _put(staging, place, replace=replace)
            sync_folder(place.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        if lock is not None:
            os.close(lock)


@contextlib.contextmanager
def staged_file(path: Path) -> Iterator[Path]:
    """Another name beside `path`, for the block to write and sync a file; it takes the place when the block ends well.

    Raises DiskFullError where the disk ran full; then and after any error `path` is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    sibling = _sibling(path, _PARTIAL)
    try:
        with disk_full_named(path):
            yield sibling
            sibling.replace(path)
            sync_folder(path.parent)
    finally:
        sibling.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """Write a small file so that it holds its old text or the new one, never a part."""
    with staged_file(path) as sibling:
        write_synced(sibling, text)


def remove_folder(place: Path) -> None:
    """Delete a folder so that it is there whole or not at all; what a kill leaves of it is swept later."""
    doomed = _sibling(place, _PARTIAL)
    place.rename(doomed)
    shutil.rmtree(doomed)


def write_synced(path: Path, text: str) -> None:
    """Write a file and wait until it is on the disk."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Wait until the folder's list of files is on the disk; nothing where the system cannot (Windows)."""
    if sys.platform != "win32":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextlib.contextmanager
def disk_full_named(place: Path) -> Iterator[None]:
    """Turn the system's word for a full disk into DiskFullError."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFullError(
                f"{place.name}: the disk ran full while it was being written; nothing was kept.",
                f"Free some space in {place.parent}, or write to another disk.",
            ) from error
        raise


def _begin(place: Path) -> tuple[Path, int | None]:
    """A new folder beside `place`, and the lock on it."""
    place.parent.mkdir(parents=True, exist_ok=True)
    beginning = _lock(place.parent, wait=True)  # or another's sweep might take a folder not yet locked
    try:
        _sweep(place.parent)
        staging = _sibling(place, _PARTIAL)
        staging.mkdir()
        return staging, _lock(staging)
    finally:
        if beginning is not None:
            os.close(beginning)


def _sibling(place: Path, suffix: str) -> Path:
    return place.with_name(f".{place.name}.{secrets.token_hex(4)}{suffix}")


def _put(staging: Path, place: Path, *, replace: bool) -> None:
    aside = _sibling(place, _REPLACED)
    if replace and place.exists():
        place.rename(aside)
    try:
        staging.rename(place)
    except OSError as error:
        if aside.exists():
            aside.rename(place)
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise UsageError(f"{place}: something is there already.", "Give another place with --out.") from error
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _sweep(parent: Path) -> None:
    for left in parent.iterdir():
        if left.name.endswith(_PARTIAL) and left.is_dir():
            lock = _lock(left)
            if lock is not None:  # its writer is gone
                shutil.rmtree(left, ignore_errors=True)
                os.close(lock)
        elif left.name.endswith(_REPLACED):
            place = parent / left.name.removesuffix(_REPLACED)[1:].rpartition(".")[0]
            if place.exists():
                shutil.rmtree(left, ignore_errors=True)
            else:  # killed between two renames: the old one goes back
                left.rename(place)


def _lock(folder: Path, *, wait: bool = False) -> int | None:
    """Hold the folder against other writers; None where one holds it, or where the system has no such lock."""
    if sys.platform == "win32":
        return None
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        os.close(handle)
        return None
    return handle
