"""Files that are written whole, and folders in which nothing is trusted that another user may have written.

Here too: waiting until something is on the disk, and the word for a disk that ran full.

Whoever can write to such a folder decides what this process runs. So a folder or a file counts only where it is
neither a symbolic link, nor owned by anyone but this user and root, nor writable by group or others.
"""

import atexit
import contextlib
import errno
import functools
import operator
import os
import secrets
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from gptfast_cli.core.errors import CorruptError, DiskFullError

PARTIAL: Final = ".gptfast-partial"
"""What the name of something unfinished ends in."""


@contextlib.contextmanager
def staged_file(path: Path) -> Iterator[Path]:
    """Another name beside `path`, for the block to write and sync a file; it takes the place when the block ends well.

    Raises DiskFullError if the disk ran full; then and after any error `path` is as it was.
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
    """Why no file can be made in a folder, which is made where it is missing; None if one can."""
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


def open_plain(path: Path, flags: int, mode: int = 0o666) -> int:
    """A handle on a plain file: never on what a symbolic link leads to, nor on a pipe or a device.

    For files whose names others can guess. Raises CorruptError if something else has the name.
    """
    extra = (getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY"))
    try:
        handle = os.open(path, functools.reduce(operator.or_, extra, flags), mode)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EMLINK, errno.ENXIO, errno.EISDIR):
            raise _not_plain(path) from error
        raise
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise _not_plain(path)
    return handle


def is_own_file(path: Path) -> bool:
    """Whether it is a plain file with one name that nobody else has put there.

    Its owner is this user, or that of its folder, who could put anything there: some systems give all files to one.
    """
    return _is_own(path, stat.S_ISREG) and (sys.platform == "win32" or path.lstat().st_nlink == 1)


def is_own_folder(path: Path) -> bool:
    """Whether it is a folder, and no symbolic link to one, that nobody else has put there; see `is_own_file`."""
    return _is_own(path, stat.S_ISDIR)


def check_inside(root: Path, folder: Path) -> None:
    """Raise CorruptError if a symbolic link leads from a folder below `root` out of it."""
    if not folder.resolve().is_relative_to(root.resolve()):
        raise CorruptError(
            f"{folder}: leads out of {root}, through a symbolic link.",
            "Nothing was written there. Remove the link, or name another folder.",
        )


def remove_plain(path: Path) -> None:
    """Delete a file or a symbolic link, where there is one; CorruptError where that cannot be done."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise _not_plain(path) from error


def _is_own(path: Path, is_kind: Callable[[int], bool]) -> bool:
    try:
        found, folder = path.lstat(), path.parent.stat()
    except OSError:
        return False
    return is_kind(found.st_mode) and (sys.platform == "win32" or found.st_uid in (os.geteuid(), folder.st_uid))


def _not_plain(path: Path) -> CorruptError:
    return CorruptError(
        f"{path}: is a link, a folder or a file of another user, where a file of this program belongs.",
        "Nothing was written to it. Remove it, or name another folder.",
    )


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


_MODE = 0o700


def why_untrusted(path: Path) -> str:
    """Why a file or folder may have been written by another user, to follow its name in a message; "" where not.

    Windows gives a profile's folders to its user alone, and says nothing in the mode. Raises OSError if there is
    nothing of that name.
    """
    if sys.platform == "win32":
        return ""
    found = path.lstat()
    if stat.S_ISLNK(found.st_mode):
        return "is a symbolic link"
    if found.st_uid not in (0, os.geteuid()):
        return "belongs to another user"
    return "can be written by other users" if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH) else ""


def private_folder(wanted: Path, temporary: Path | None = None) -> tuple[Path, str]:
    """A folder that this user alone can write to, and "": `wanted`, made with mode 0700 where it is missing.

    Where `wanted` is not such a folder, another one in the system's temporary folder (`temporary`), and a sentence that
    says why. Its name is fixed, so that the next run finds it, unless somebody else has taken that name.
    """
    reason = _why_unusable(wanted)
    if not reason:
        return wanted, ""
    user = str(os.geteuid()) if sys.platform != "win32" else "user"
    other = (temporary or Path(tempfile.gettempdir())) / f"gptfast-{user}-{wanted.name}"
    if _why_unusable(other):
        other = Path(tempfile.mkdtemp(prefix=f"{other.name}-", dir=temporary))
        atexit.register(shutil.rmtree, other, ignore_errors=True)
    return other, f"{reason}. Compiled code is kept in {other} instead; GPTFAST_KERNELS can name another folder."


def _why_unusable(folder: Path) -> str:
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=_MODE, exist_ok=True)
        reason = why_untrusted(folder)
    except OSError as error:
        return f"{folder}: cannot be used ({error.strerror})"
    if not reason and not os.access(folder, os.W_OK | os.X_OK):
        reason = "cannot be written to"
    return reason and f"{folder}: {reason}"
