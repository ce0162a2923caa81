"""Atomic folders: written to a temporary sibling, then renamed.

The folder of a killed process is reused by the next run of the same work, and deleted by a run of other work. A folder
being written is locked by its writer; the operating system releases the lock when the process ends.
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
from gptfast_cli.core.files import (
    PARTIAL,
    disk_full_named,
    is_own_folder,
    sibling,
    sync_folder,
)

if sys.platform != "win32":
    import fcntl

_REPLACED = ".gptfast-replaced"
_RESUMABLE = ".gptfast-resumable"
_KEPT_SECONDS = 14 * 24 * 3600.0  # that nobody has gone on with what can be resumed


@contextlib.contextmanager
def staged_folder(place: Path, identity: str, *, replace: bool) -> Iterator[Path]:
    """A folder beside `place`, to be filled by the block; it goes to `place` when the block ends well.

    Whatever happens, `place` is as it was before or new and whole. With `replace` a folder that stands there gives
    way. Where the block ends badly, what it has written stays for a run of the same identity to go on with: one of
    another for this place clears it away, as does any after two weeks.

    Raises DiskFullError if the disk ran full, UsageError if another process is at the same work or something else
    took the place meanwhile.
    """
    staging, lock = _begin(place, place.with_name(f".{place.name}.{identity}{_RESUMABLE}"))
    try:
        if lock is None and sys.platform != "win32":
            raise UsageError(f"{place.name}: is being written by another gptfast.", "Wait until that is done.")
        with disk_full_named(place, "what is finished was kept"):
            yield staging
            _publish(staging, place, replace=replace)
    finally:
        if lock is not None:
            with contextlib.suppress(OSError):
                staging.rmdir()  # where nothing was written there is nothing to go on with
            os.close(lock)


def remove_folder(place: Path) -> None:
    """Delete a folder atomically; remains of a killed run are removed later."""
    if place.is_symlink():  # what it leads to belongs elsewhere
        place.unlink()
        return
    doomed = sibling(place, PARTIAL)
    place.rename(doomed)
    shutil.rmtree(doomed)


def _begin(place: Path, staging: Path) -> tuple[Path, int | None]:
    """The folder `staging` beside `place`, new or one to go on with, and the lock on it; None if another has it."""
    place.parent.mkdir(parents=True, exist_ok=True)
    beginning = _lock(place.parent, wait=True)  # or another's sweep might take a folder not yet locked
    try:
        _sweep(place, staging)
        try:
            staging.mkdir()
        except FileExistsError:
            if not is_own_folder(staging):  # what is finished in it would be believed
                raise UsageError(
                    f"{staging}: is a link, or belongs to another user.", "Remove it, or give another place with --out."
                ) from None
        return staging, _lock(staging)
    finally:
        if beginning is not None:
            os.close(beginning)


def _publish(staging: Path, place: Path, *, replace: bool) -> None:
    sync_folder(staging)
    _put(staging, place, replace=replace)
    sync_folder(place.parent)


def _put(staging: Path, place: Path, *, replace: bool) -> None:
    aside = sibling(place, _REPLACED)
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
    _clear(aside)


def _clear(aside: Path) -> None:
    """Delete the replaced folder; of a symbolic link, only the link."""
    if aside.is_symlink():
        aside.unlink()
    else:
        shutil.rmtree(aside, ignore_errors=True)


def _sweep(place: Path, staging: Path) -> None:
    """Delete remains of dead processes beside `place`, except the folder in use."""
    for left in place.parent.iterdir():
        if not left.name.endswith((PARTIAL, _RESUMABLE, _REPLACED)) or not is_own_folder(left):
            continue
        if left.name.endswith(PARTIAL) or (_is_given_up(left, place) and left != staging):
            lock = _lock(left)
            if lock is not None:  # its writer is gone
                shutil.rmtree(left, ignore_errors=True)
                os.close(lock)
        elif left.name.endswith(_REPLACED):
            _put_back(left)


def _is_given_up(left: Path, place: Path) -> bool:
    """Whether a resumable folder belongs to other work for this place, or is old."""
    if not left.name.endswith(_RESUMABLE):
        return False
    rival = left.name.removesuffix(_RESUMABLE).rpartition(".")[0] == f".{place.name}"
    return rival or time.time() - left.stat().st_mtime > _KEPT_SECONDS


def _put_back(aside: Path) -> None:
    place = aside.with_name(aside.name.removesuffix(_REPLACED)[1:].rpartition(".")[0])
    if place.exists():
        _clear(aside)
    else:  # killed between two renames: the old one goes back
        aside.rename(place)


def _lock(folder: Path, *, wait: bool = False) -> int | None:
    """Hold the folder against other writers; None if one holds it, or where the system has no such lock."""
    if sys.platform == "win32":
        return None
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        os.close(handle)
        return None
    return handle
