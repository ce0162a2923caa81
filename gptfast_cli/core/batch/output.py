"""Output file of a prompts file: one JSON line per row, in the order of the rows, resumable.

Each record is appended whole. A partial last record, after a kill or on a full disk, is truncated when the file is next
opened. The writing process holds an exclusive lock (flock), which the system releases when the process ends.
"""

import contextlib
import errno
import json
import os
import stat
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from gptfast_cli.core.batch.rows import BadRow, Row
from gptfast_cli.core.errors import DiskFullError, NotFoundError, UsageError
from gptfast_cli.core.events import Record
from gptfast_cli.core.files import open_plain


def record_of(row: Row | BadRow, answer: Mapping[str, object], identity: str) -> Record:
    """The record of a row: its id and line, the answer, and `identity`, the hash of what the answer depends on."""
    return Record({"id": row.id, "line": row.line, **answer, "request": identity})


def refusal(row: Row | BadRow, reason: str, identity: str) -> Record:
    """The error record of a row that cannot be answered."""
    return record_of(row, {"error": {"message": reason}}, identity)


def reason_of(record: Record) -> str | None:
    """The error message of a record; None for an answer."""
    match record.fields:
        case {"error": {"message": str(reason)}}:
            return reason
    return None


def tokens_of(record: Record) -> tuple[int, int]:
    """(prompt tokens, generated tokens) of a record; zeros for an error."""
    match record.fields:
        case {"samples": list(samples), "prompt_tokens": int(n_prompt)}:
            return n_prompt, sum(len(sample["token_ids"]) for sample in samples)
        case {"token_ids": [*token_ids], "prompt_tokens": int(n_prompt)}:
            return n_prompt, len(token_ids)
    return 0, 0


def line_of(record: Record) -> int:
    """The line number of a record's row."""
    line = record.fields["line"]
    assert isinstance(line, int)
    return line


class RecordOrder:
    """Reorders records: accepts them as they finish, releases them in the order of `lines`.

    lines: line numbers of the rows to come, in order; None releases every record at once
    """

    def __init__(self, lines: Iterable[int] | None) -> None:
        self._due = None if lines is None else deque(lines)
        self._held: dict[int, Record] = {}  # by line

    @property
    def held(self) -> list[Record]:
        """Records that wait for earlier ones, sorted by line."""
        return [self._held[line] for line in sorted(self._held)]

    def put(self, record: Record) -> list[Record]:
        """Add a record; returns those released by it."""
        if self._due is None:
            return [record]
        self._held[line_of(record)] = record
        leaving = []
        while self._due and self._due[0] in self._held:
            leaving.append(self._held.pop(self._due.popleft()))
        return leaving


if sys.platform != "win32":
    import fcntl

_BEGINNING: Final = b'{"id": '
_KEYS: Final = frozenset(("id", "line", "request"))
_SECONDS_BETWEEN_SYNCS = 5.0


class RecordFile:
    """Records on disk; `read` must be called once before the first append.

    follow: follow a symbolic link; otherwise it is refused
    Raises NotFoundError if the folder does not exist, UsageError if the path is not a regular file or locked by another
    process.
    """

    def __init__(self, path: Path, *, follow: bool = True) -> None:
        self.path = path
        self._handle = _open(path, follow=follow)
        self._end = 0  # bytes that whole records take
        self._synced_at = time.monotonic()

    def read(self) -> Iterator[Mapping[str, Any]]:
        """The records in the file; a partial last one is truncated.

        Raises UsageError if the file holds anything else.
        """
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if _is_torn(line):
                    break
                yield self._parse(line, number)
                self._end += len(line)
        os.ftruncate(self._handle, self._end)

    def append(self, record: Mapping[str, object]) -> None:
        """Append a record. Raises DiskFullError, leaving earlier records intact."""
        line = json.dumps(record, allow_nan=False).encode("ascii") + b"\n"
        with self._room_needed():
            self._write(line)
            if time.monotonic() - self._synced_at > _SECONDS_BETWEEN_SYNCS:
                self._sync()

    def clear(self) -> None:
        if self._end:
            self._end = 0
            os.ftruncate(self._handle, 0)

    def remove(self) -> None:
        """Delete the file, which stays open until `close`."""
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Sync and release the lock."""
        try:
            with self._room_needed():
                self._sync()
        finally:
            os.close(self._handle)

    def _parse(self, line: bytes, number: int) -> Mapping[str, Any]:
        record = _json(line)
        if not isinstance(record, dict) or not record.keys() >= _KEYS:
            raise UsageError(
                f"{self.path}:{number}: is not a record of gptfast, so the file is left unchanged.",
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
            os.ftruncate(self._handle, self._end)  # interrupted, or the disk is full: no partial record stays
            raise

    def _sync(self) -> None:
        os.fsync(self._handle)
        self._synced_at = time.monotonic()

    @contextlib.contextmanager
    def _room_needed(self) -> Iterator[None]:
        """Turn ENOSPC into DiskFullError."""
        try:
            yield
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DiskFullError(
                    f"{self.path}: the disk is full; the records written before are kept.",
                    "Free some space and repeat the command: it resumes from there.",
                ) from error
            raise


def _is_torn(line: bytes) -> bool:
    """Whether a line without newline is a partial record, not the last line of some other file."""
    is_cut = not line.endswith(b"\n") and (line.startswith(_BEGINNING) or _BEGINNING.startswith(line))
    whole = _json(line) if is_cut else None
    return is_cut and (whole is None or (isinstance(whole, dict) and whole.keys() >= _KEYS))


def _json(line: bytes) -> object:
    """The value of a line; None if it is not JSON."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _open(path: Path, *, follow: bool) -> int:
    """Open the file, create it if missing, and lock it."""
    try:
        handle = (os.open if follow else open_plain)(path, os.O_RDWR | os.O_CREAT, 0o666)
    except FileNotFoundError as error:
        raise NotFoundError(f"There is no folder {str(path.parent)!r} to write {path.name} in.") from error
    except IsADirectoryError as error:
        raise UsageError(f"{path}: is a folder.", "Give the name of a file with --output.") from error
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise UsageError(f"{path}: is not a regular file.", "Leave out --output and redirect stdout.")
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
            f"{path}: another run is writing it.", "Wait for that run, or give another file with --output."
        ) from error


@dataclass(frozen=True, slots=True)
class PriorRecord:
    """Fields of a record written by an earlier run."""

    seed: int | None  # None for an error
    is_bad: bool


class Output(Protocol):
    """Receives records as they finish."""

    @property
    def found(self) -> Mapping[int, PriorRecord]:
        """Records of an earlier run, by line number."""
        ...

    def put(self, record: Record) -> list[Record]:
        """Add a record; returns the records released by it, in order, already written to the file."""
        ...

    def unsaved(self) -> list[Record]:
        """Finished records that are neither released nor written to a file."""
        ...


@contextlib.contextmanager
def open_output(path: Path | None, identities: Mapping[int, str], *, in_order: bool) -> Iterator[Output]:
    """The output of a run; `path` None writes no file.

    identities: {line number: identity of the row}, in the order of the rows
    in_order:   release records in that order; otherwise as they finish
    Raises UsageError if the file belongs to other rows or options, or another run is writing it.
    """
    if path is None:
        yield _UnsavedOutput(RecordOrder(identities if in_order else None))
        return
    is_new = not path.exists()
    waiting_path = path.with_name(f"{path.name}.waiting")
    with (
        contextlib.closing(RecordFile(path)) as records,
        contextlib.closing(RecordFile(waiting_path, follow=False)) as waiting,
    ):
        output = _FileOutput(records, waiting, identities, in_order=in_order)
        output.take_up_waiting(identities, valid=not is_new)
        try:
            yield output
        finally:
            output.tidy()


class _UnsavedOutput:
    """Reorders records without writing a file."""

    def __init__(self, order: RecordOrder) -> None:
        self.found: Mapping[int, PriorRecord] = {}
        self._order = order

    def put(self, record: Record) -> list[Record]:
        return self._order.put(record)

    def unsaved(self) -> list[Record]:
        return self._order.held


class _FileOutput:
    """Writes a file; records that wait for earlier ones are kept in a second file, so that a kill loses none."""

    def __init__(
        self, records: RecordFile, waiting: RecordFile, identities: Mapping[int, str], *, in_order: bool
    ) -> None:
        self._records = records
        self._waiting = waiting
        self.found: dict[int, PriorRecord] = {}
        for record in records.read():
            self._check(record, identities)
            self.found[record["line"]] = _found(record)
        lines = list(identities)
        n_found = len(self.found)
        if in_order and list(self.found) != lines[:n_found]:
            raise UsageError(
                f"{records.path}: its records are not in the order of the rows.",
                "It was written with --unordered: add that option, or give another --output.",
            )
        self._order = RecordOrder(lines[n_found:] if in_order else None)

    def take_up_waiting(self, identities: Mapping[int, str], *, valid: bool) -> None:
        """Resume with the waiting records of an earlier run; drop them if they are of other rows or not `valid`."""
        for record in self._waiting.read():
            line = record["line"]
            if valid and line not in self.found and identities.get(line) == record["request"]:
                self.found[line] = _found(record)
                self._write(self._order.put(Record(record)))
        if not self._order.held:
            self._waiting.clear()

    def put(self, record: Record) -> list[Record]:
        leaving = self._order.put(record)
        self._write(leaving)
        if not self._order.held:
            self._waiting.clear()
        elif record not in leaving:
            self._waiting.append(record.fields)
        return leaving

    def unsaved(self) -> list[Record]:
        return []

    def tidy(self) -> None:
        """Delete the second file if it is empty."""
        if not self._order.held:
            self._waiting.remove()

    def _write(self, leaving: list[Record]) -> None:
        for record in leaving:
            self._records.append(record.fields)

    def _check(self, record: Mapping[str, Any], identities: Mapping[int, str]) -> None:
        line = record["line"]
        if line in self.found or identities.get(line) != record["request"]:
            raise UsageError(
                f"{self._records.path}: its record of line {line} comes from another prompt, model or options.",
                "Repeat the run with the original model, prompts and options, or give another --output.",
            )


def _found(record: Mapping[str, Any]) -> PriorRecord:
    return PriorRecord(record.get("seed"), "error" in record)
