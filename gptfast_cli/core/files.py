"""Files that appear whole or not at all: written under another name beside their place, then renamed.

Here too: waiting until something is on the disk, and the word for a disk that ran full.
"""

import contextlib
import errno
import os
import secrets
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from gptfast_cli.core.errors import DiskFullError

PARTIAL: Final = ".gptfast-partial"
"""What the name of something unfinished ends in."""


@contextlib.contextmanager
def staged_file(path: Path) -> Iterator[Path]:
    """Another name beside `path`, for the block to write and sync a file; it takes the place when the block ends well.

    Raises DiskFullError where the disk ran full; then and after any error `path` is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    other = sibling(path, PARTIAL)
    try:
        with disk_full_named(path):
            yield other
            other.replace(path)
            sync_folder(path.parent)
    finally:
        other.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """Write a small file so that it holds its old text or the new one, never a part."""
    with staged_file(path) as other:
        write_synced(other, text)


def write_synced(path: Path, text: str) -> None:
    """Write a file and wait until it is on the disk."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def why_not_writable(folder: Path) -> str | None:
    """Why no file can be made in a folder, which is made where it is missing; None where one can."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return error.strerror or type(error).__name__


def is_folder(path: Path) -> bool:
    """Whether a folder is there, and not hidden from this person; `Path.is_dir` raises where one above it is."""
    try:
        return path.is_dir()
    except OSError:
        return False


def is_file(path: Path) -> bool:
    """Whether a file is there, and not hidden from this person."""
    try:
        return path.is_file()
    except OSError:
        return False


def sync_folder(folder: Path) -> None:
    """Wait until the folder's list of files is on the disk; nothing where the system cannot (Windows)."""
    if sys.platform != "win32":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextlib.contextmanager
def disk_full_named(place: Path, rest: str = "nothing was kept") -> Iterator[None]:
    """Turn the system's word for a full disk into DiskFullError; `rest` tells what became of the work so far."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFullError(
                f"{place.name}: the disk ran full while it was being written; {rest}.",
                f"Free some space in {place.parent}, or write to another disk.",
            ) from error
        raise


def sibling(place: Path, suffix: str) -> Path:
    """A free name beside a place, hidden, that ends in `suffix`."""
    return place.with_name(f".{place.name}.{secrets.token_hex(4)}{suffix}")
