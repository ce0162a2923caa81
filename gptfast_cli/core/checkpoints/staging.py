"""Atomic folders: written to a temporary sibling, then renamed.

The temporary folder of a killed process is resumed by a run of the same identity, and deleted by a run of another. A
folder being written is locked by its writer; the operating system releases the lock when the process ends.
"""

import contextlib
import errno
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from gptfast_cli.core.errors import UsageError
from gptfast_cli.core.files import PARTIAL, disk_full_named, is_own_folder, sibling, sync_folder

if sys.platform != "win32":
    import fcntl

_REPLACED = ".gptfast-replaced"
_RESUMABLE = ".gptfast-resumable"
_KEPT_SECONDS = 14 * 24 * 3600.0  # age at which a resumable folder is deleted


@contextlib.contextmanager
def staged_folder(target: Path, identity: str, *, replace: bool) -> Iterator[Path]:
    """A folder beside `target`, filled by the block and renamed to `target` when the block succeeds.

    `target` is always either unchanged or complete; with `replace` an existing folder is replaced. After a failure the
    contents are kept for a run of the same identity; a run of another identity for this target deletes them, and any
    run after two weeks.

    Raises DiskFullError, and UsageError if another process is writing it or `target` was created meanwhile.
    """
    staging, lock = _begin(target, target.with_name(f".{target.name}.{identity}{_RESUMABLE}"))
    try:
        if lock is None and sys.platform != "win32":
            raise UsageError(f"{target.name}: is being written by another gptfast.", "Wait until that is done.")
        with disk_full_named(target, "what is finished was kept"):
            yield staging
            _publish(staging, target, replace=replace)
    finally:
        if lock is not None:
            with contextlib.suppress(OSError):
                staging.rmdir()  # fails unless it is empty
            os.close(lock)


def remove_folder(target: Path) -> None:
    """Delete a folder atomically; remains of a killed run are removed later."""
    if target.is_symlink():  # only the link is ours
        target.unlink()
        return
    doomed = sibling(target, PARTIAL)
    target.rename(doomed)
    shutil.rmtree(doomed)


def leftovers(folder: Path) -> Iterator[Path]:
    """What interrupted runs left in a folder: staged folders whose writer has ended."""
    for left in sorted(folder.iterdir()) if is_own_folder(folder) else ():
        if left.name.endswith((PARTIAL, _RESUMABLE, _REPLACED)) and is_own_folder(left):
            lock = _lock(left)
            if lock is not None:
                os.close(lock)
            if lock is not None or sys.platform == "win32":
                yield left


def remove_leftover(left: Path) -> bool:
    """Delete a folder of `leftovers`, or put back what it was to replace; False if it is being written again."""
    if left.name.endswith(_REPLACED):
        _put_back(left)
        return True
    lock = _lock(left)
    if lock is None and sys.platform != "win32":
        return False
    shutil.rmtree(left, ignore_errors=True)
    if lock is not None:
        os.close(lock)
    return True


def _begin(target: Path, staging: Path) -> tuple[Path, int | None]:
    """Create or resume `staging` beside `target`; returns it with its lock, None if another process holds that."""
    target.parent.mkdir(parents=True, exist_ok=True)
    beginning = _lock(target.parent, wait=True)  # so that no other process sweeps a folder that is not locked yet
    try:
        _sweep(target, staging)
        try:
            staging.mkdir()
        except FileExistsError:
            if not is_own_folder(staging):  # its contents would be trusted
                raise UsageError(
                    f"{staging}: is a link, or belongs to another user.",
                    "Remove it, or give another folder with --out.",
                ) from None
        return staging, _lock(staging)
    finally:
        if beginning is not None:
            os.close(beginning)


def _publish(staging: Path, target: Path, *, replace: bool) -> None:
    sync_folder(staging)
    _put(staging, target, replace=replace)
    sync_folder(target.parent)


def _put(staging: Path, target: Path, *, replace: bool) -> None:
    aside = sibling(target, _REPLACED)
    if replace and target.exists():
        target.rename(aside)
    try:
        staging.rename(target)
    except OSError as error:
        if aside.exists():
            aside.rename(target)
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise UsageError(f"{target}: something is there already.", "Give another folder with --out.") from error
        raise
    _clear(aside)


def _clear(aside: Path) -> None:
    """Delete the replaced folder; of a symbolic link, only the link."""
    if aside.is_symlink():
        aside.unlink()
    else:
        shutil.rmtree(aside, ignore_errors=True)


def _sweep(target: Path, staging: Path) -> None:
    """Delete remains of dead processes beside `target`, except the folder in use."""
    for left in target.parent.iterdir():
        if not left.name.endswith((PARTIAL, _RESUMABLE, _REPLACED)) or not is_own_folder(left):
            continue
        if left.name.endswith(PARTIAL) or (_is_given_up(left, target) and left != staging):
            lock = _lock(left)
            if lock is not None:  # its writer is gone
                shutil.rmtree(left, ignore_errors=True)
                os.close(lock)
        elif left.name.endswith(_REPLACED):
            _put_back(left)


def _is_given_up(left: Path, target: Path) -> bool:
    """Whether a resumable folder is of another identity for this target, or old."""
    if not left.name.endswith(_RESUMABLE):
        return False
    rival = left.name.removesuffix(_RESUMABLE).rpartition(".")[0] == f".{target.name}"
    return rival or time.time() - left.stat().st_mtime > _KEPT_SECONDS


def _put_back(aside: Path) -> None:
    target = aside.with_name(aside.name.removesuffix(_REPLACED)[1:].rpartition(".")[0])
    if target.exists():
        _clear(aside)
    else:  # killed between two renames: restore the old one
        aside.rename(target)


def _lock(folder: Path, *, wait: bool = False) -> int | None:
    """Lock the folder; returns the handle, None if another process holds the lock or on Windows."""
    if sys.platform == "win32":
        return None
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        os.close(handle)
        return None
    return handle
