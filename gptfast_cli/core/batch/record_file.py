"""A file of records, a line of JSON each, that grows by whole lines and is whole whenever its writer is killed.

A record is written at once and to the end. What a kill or a full disk leaves of the last one is cut off when the
file is next opened. One process writes at a time: it holds a lock, which the system lets go of with the process.
"""

import contextlib
import errno
import json
import os
import stat
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from gptfast_cli.core.errors import DiskFullError, NotFoundError, UsageError
from gptfast_cli.core.files import open_plain

if sys.platform != "win32":
    import fcntl

_BEGINNING: Final = b'{"id": '
_KEYS: Final = frozenset(("id", "line", "request"))
_SECONDS_BETWEEN_SYNCS = 5.0


class RecordFile:
    """Records on disk; read what is there once, before anything is appended.

    Without `follow` a symbolic link of that name is refused. Raises NotFoundError where its folder is not there,
    UsageError where it is no file or another process writes it.
    """

    def __init__(self, path: Path, *, follow: bool = True) -> None:
        self.path = path
        self._handle = _open(path, follow=follow)
        self._end = 0  # bytes that whole records take
        self._synced_at = time.monotonic()

    def read(self) -> Iterator[Mapping[str, Any]]:
        """The records that are there; after the last of them, a torn one is cut off.

        Raises UsageError where the file holds anything else.
        """
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if _is_torn(line):
                    break
                yield self._parse(line, number)
                self._end += len(line)
        os.ftruncate(self._handle, self._end)

    def append(self, record: Mapping[str, object]) -> None:
        """Add a record; DiskFullError where there is no room for it, and those before it stay."""
        line = json.dumps(record, allow_nan=False).encode("ascii") + b"\n"
        with self._room_needed():
            self._write(line)
            if time.monotonic() - self._synced_at > _SECONDS_BETWEEN_SYNCS:
                self._sync()

    def clear(self) -> None:
        """Drop all records."""
        if self._end:
            self._end = 0
            os.ftruncate(self._handle, 0)

    def remove(self) -> None:
        """Delete the file; it is still to be closed."""
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Put what there is on the disk and let others write."""
        try:
            with self._room_needed():
                self._sync()
        finally:
            os.close(self._handle)

    def _parse(self, line: bytes, number: int) -> Mapping[str, Any]:
        record = _json(line)
        if not isinstance(record, dict) or not record.keys() >= _KEYS:
            raise UsageError(
                f"{self.path}:{number}: is no record of gptfast, and nothing is written to such a file.",
                "Give another name with --output.",
            )
        return record

    def _write(self, line: bytes) -> None:
        os.lseek(self._handle, self._end, os.SEEK_SET)
        rest = line
        try:
            while rest:
                rest = rest[os.write(self._handle, rest) :]
            self._end += len(line)
        except BaseException:
            os.ftruncate(self._handle, self._end)  # an interrupt or a full disk leaves no part of a record
            raise

    def _sync(self) -> None:
        os.fsync(self._handle)
        self._synced_at = time.monotonic()

    @contextlib.contextmanager
    def _room_needed(self) -> Iterator[None]:
        """Turn the system's word for a full disk into DiskFullError."""
        try:
            yield
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DiskFullError(
                    f"{self.path}: the disk is full; the records written before are kept.",
                    "Free some space and give the same command again: it goes on from there.",
                ) from error
            raise


def _is_torn(line: bytes) -> bool:
    """Whether it is the beginning of a record, and not some other file's last line."""
    is_cut = not line.endswith(b"\n") and (line.startswith(_BEGINNING) or _BEGINNING.startswith(line))
    whole = _json(line) if is_cut else None
    return is_cut and (whole is None or (isinstance(whole, dict) and whole.keys() >= _KEYS))


def _json(line: bytes) -> object:
    """What a line holds; None where it is no JSON."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _open(path: Path, *, follow: bool) -> int:
    """A handle on the file, which is made where it is not there, and locked."""
    try:
        handle = (os.open if follow else open_plain)(path, os.O_RDWR | os.O_CREAT, 0o666)
    except FileNotFoundError as error:
        raise NotFoundError(f"There is no folder {str(path.parent)!r} to write {path.name} in.") from error
    except IsADirectoryError as error:
        raise UsageError(f"{path}: is a folder.", "Give the name of a file with --output.") from error
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise UsageError(f"{path}: is no file that can be continued.", "Leave out --output and redirect stdout.")
        _lock(handle, path)
    except BaseException:
        os.close(handle)
        raise
    return handle


def _lock(handle: int, path: Path) -> None:
    if sys.platform == "win32":
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UsageError(
            f"{path}: another run is writing it.", "Wait for that run, or give another name with --output."
        ) from error
