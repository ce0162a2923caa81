"""File locks between processes, released by the operating system when their holder ends.

The lock is that of huggingface_hub: `flock` on Unix, the first byte on Windows. On a file system without locks none is
taken; downloads are verified in any case.
"""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from gptfast_cli.core.files import open_plain

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

_SECONDS_BETWEEN_TRIES = 0.2


@contextlib.contextmanager
def held(path: Path, *, when_taken: Callable[[], None], pause: Callable[[float], None] = time.sleep) -> Iterator[None]:
    """Hold the lock for the block, waiting with `pause`; `when_taken` is called once if another process holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    is_reported = False
    while (handle := _taken(path)) is None:
        if not is_reported:
            when_taken()
            is_reported = True
        pause(_SECONDS_BETWEEN_TRIES)
    try:
        yield
    finally:
        os.close(handle)


@contextlib.contextmanager
def held_if_free(path: Path) -> Iterator[bool]:
    """Hold the lock for the block if it is free; yields whether it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = _taken(path)
    try:
        yield handle is not None
    finally:
        if handle is not None:
            os.close(handle)


def _taken(path: Path) -> int | None:
    """A file descriptor that holds the lock; None if another process does."""
    try:
        handle = open_plain(path, os.O_RDWR | os.O_CREAT, 0o664)
    except PermissionError:  # another user's file can be locked read-only
        handle = open_plain(path, os.O_RDONLY)
    try:
        _lock(handle)
    except (BlockingIOError, PermissionError):
        os.close(handle)
        return None
    except OSError:  # the file system has no locks
        return handle
    if os.fstat(handle).st_nlink == 0:  # deleted by its holder: the next process locks a new file
        os.close(handle)
        return None
    return handle


def _lock(handle: int) -> None:
    if sys.platform == "win32":
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
    else:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
