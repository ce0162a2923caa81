"""A lock on a file against other processes, which the system lets go of with its holder, however that ends.

It is the lock that huggingface_hub takes: `flock` on Unix, the first byte on Windows. A file system that knows no
locks gives none; a file is then verified all the same.
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
    """Hold the lock of that file for the block, waiting with `pause`; `when_taken` is called once if another has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    told = False
    while (handle := _taken(path)) is None:
        if not told:
            when_taken()
            told = True
        pause(_SECONDS_BETWEEN_TRIES)
    try:
        yield
    finally:
        os.close(handle)


@contextlib.contextmanager
def held_if_free(path: Path) -> Iterator[bool]:
    """Hold the lock for the block where nobody has it, and say whether that is so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = _taken(path)
    try:
        yield handle is not None
    finally:
        if handle is not None:
            os.close(handle)


def _taken(path: Path) -> int | None:
    """A handle that holds the lock; None where another has it."""
    try:
        handle = open_plain(path, os.O_RDWR | os.O_CREAT, 0o664)
    except PermissionError:  # another user's, which can be locked all the same
        handle = open_plain(path, os.O_RDONLY)
    try:
        _lock(handle)
    except (BlockingIOError, PermissionError):
        os.close(handle)
        return None
    except OSError:  # the file system knows no locks
        return handle
    if os.fstat(handle).st_nlink == 0:  # its holder deleted it, and the next one locks another file
        os.close(handle)
        return None
    return handle


def _lock(handle: int) -> None:
    if sys.platform == "win32":
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
    else:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
