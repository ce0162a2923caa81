"""Download of one file: resumable, and verified by its checksum.

The partial file has the same name in every run, and a JSON note beside it records what it is a part of (size, hash,
ETag). A later run continues only if the note matches; the hash of the whole file decides in the end.
"""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final, Protocol

from gptfast_cli.core.digest import Digest
from gptfast_cli.core.errors import CorruptError
from gptfast_cli.core.fields import read_fields
from gptfast_cli.core.files import (
    PARTIAL,
    disk_full_named,
    is_own_file,
    open_plain,
    remove_plain,
    sync_folder,
    write_whole,
)
from gptfast_cli.core.hub.lock import held
from gptfast_cli.core.hub.remote import Body, RemoteFile, RetryPolicy, TransientError, WrongBytesError, given_up
from gptfast_cli.core.hub.target_paths import Layout, TargetPaths

_NOTE: Final = ".json"


class Partial:
    """A partially downloaded file, at a path that ends in `.gptfast-partial`."""

    def __init__(self, path: Path, remote: RemoteFile) -> None:
        assert path.name.endswith(PARTIAL), path
        self.path = path
        self._note = note_of(path)
        self._remote = remote
        self.validator: str | None = None

    def resume(self) -> int:
        """Bytes that can be reused; 0 after deleting a partial file of another file or version."""
        try:
            if not (is_own_file(self.path) and is_own_file(self._note)):
                raise FileNotFoundError(self.path)
            fields = read_fields(self._note)
            size = self.path.stat().st_size
            self.validator = fields.text("etag", "") or None
            identity = {name: fields.values.get(name) for name in self._identity()}
        except (OSError, CorruptError):
            self.discard()
            return 0
        known = self._remote.checksum is not None or self.validator is not None
        too_long = size > self._remote.size
        if not known or too_long or identity != self._identity():
            self.discard()
            return 0
        return size

    def begin(self, validator: str | None) -> None:
        """Write the note, before the first byte."""
        self.validator = validator
        note = {"name": self._remote.name, "commit": self._remote.version, "etag": validator, **self._identity()}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self._note, json.dumps(note))

    def open(self) -> BinaryIO:
        """The partial file, open for reading and appending."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        return os.fdopen(open_plain(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND), "a+b")

    def publish(self, final: Path) -> None:
        """Rename the complete file to its final name; it has been synced."""
        final.parent.mkdir(parents=True, exist_ok=True)
        try:
            self.path.replace(final)
        except IsADirectoryError as error:
            raise CorruptError(
                f"{final}: a folder exists where the file should be written.", "Remove it first."
            ) from error
        self._note.unlink(missing_ok=True)

    def discard(self) -> None:
        """Delete the partial file and its note."""
        self.validator = None
        remove_plain(self.path)
        remove_plain(self._note)

    def _identity(self) -> dict[str, object]:
        """Fields that must match to resume: size, and the hash, or the version where there is no hash."""
        checksum = self._remote.checksum
        algorithm, of = (checksum.algorithm, checksum.value) if checksum else (None, self._remote.version)
        return {"size": self._remote.size, "hash": algorithm, "of": of}


def note_of(partial: Path) -> Path:
    """Path of the note of a partial file."""
    return partial.with_name(f"{partial.name}{_NOTE}")


_CHUNK_BYTES = 1 << 20


class Watch(Protocol):
    """Receives the progress of a download, and may cancel it."""

    def at(self, done: int) -> None:
        """`done` bytes have been written. Raises CancelledError if the download was cancelled."""
        ...

    def note(self, text: str) -> None:
        """Report a message to the user."""
        ...

    def pause(self, seconds: float) -> None:
        """Sleep. Raises CancelledError if the download was cancelled."""
        ...


@dataclass(frozen=True, slots=True)
class Fetched:
    """A downloaded file.

    verified_by: hash algorithm; None if the source offers no checksum
    n_received:  bytes received from the network, discarded ones included
    was_there:   another process downloaded it in the meantime
    """

    name: str
    n_bytes: int
    verified_by: str | None
    n_received: int = 0
    was_there: bool = False


def fetch(remote: RemoteFile, layout: Layout, *, watch: Watch, retry_policy: RetryPolicy) -> Fetched:
    """Download a file and publish it under its name.

    Raises NetworkError when the retry policy gives up, CorruptError if the file arrived twice with a wrong length or
    hash, DiskFullError, and the errors of the source that a retry cannot cure.
    """
    place = layout.place(remote)
    when_taken = _note_once(watch, f"{remote.name}: another process is fetching it; waiting.")
    with held(place.lock, when_taken=when_taken, pause=watch.pause):
        if layout.is_there(remote):
            layout.publish(remote)
            watch.at(remote.size)
            return Fetched(remote.name, remote.size, None, was_there=True)
        named = place.final.with_name(remote.name.rpartition("/")[2])  # in the Hub cache the final name is a hash
        with disk_full_named(named, "what arrived is kept"):
            fetched = _Fetch(remote, place, watch, retry_policy).run()
            layout.publish(remote)
            sync_folder(place.final.parent)
        return fetched


def _note_once(watch: Watch, text: str) -> Callable[[], None]:
    return lambda: watch.note(text)


class _Fetch:
    """The download of one file, under its lock."""

    def __init__(self, remote: RemoteFile, place: TargetPaths, watch: Watch, retry_policy: RetryPolicy) -> None:
        self._remote = remote
        self._place = place
        self._watch = watch
        self._retry_policy = retry_policy
        self._partial = Partial(place.partial, remote)
        self._n_received = 0

    def run(self) -> Fetched:
        """Receive, verify and publish; restart once from the beginning if verification fails."""
        try:
            n_bytes = self._once()
        except WrongBytesError as error:
            self._partial.discard()
            self._watch.note(f"{self._remote.name}: {error}; downloading it again.")
            try:
                n_bytes = self._once()
            except WrongBytesError as again:
                self._partial.discard()
                raise CorruptError(
                    f"{self._remote.name}: {again}, twice.",
                    "The server's files do not match its listing: try again later, or choose another revision.",
                ) from again
        self._partial.publish(self._place.final)
        algorithm = self._remote.checksum.algorithm if self._remote.checksum else None
        return Fetched(self._remote.name, n_bytes, algorithm, self._n_received)

    def _once(self) -> int:
        n_bytes = self._partial.resume()
        with self._partial.open() as file:
            intake = _Intake(file, n_bytes, self._remote, self._watch)
            self._receive(intake)
            file.flush()
            os.fsync(file.fileno())
            intake.check()
        return intake.n_bytes

    def _receive(self, intake: "_Intake") -> None:
        """Request until the file is complete. Raises NetworkError when attempts make no progress."""
        n_failed, furthest = 0, intake.n_bytes
        while intake.n_bytes != self._remote.size:
            try:
                self._receive_once(intake)
                return
            except TransientError as fault:
                n_failed = 1 if intake.n_bytes > furthest else n_failed + 1
                furthest = max(furthest, intake.n_bytes)
                seconds = self._retry_policy.wait_seconds(n_failed, fault)
                if seconds is None:
                    raise given_up(self._remote.name, fault) from None  # the cause may contain a secret
                if seconds >= 1:
                    self._watch.note(f"{self._remote.name}: {fault.reason}; retrying in {seconds:.0f} s.")
                self._watch.pause(seconds)

    def _receive_once(self, intake: "_Intake") -> None:
        with self._remote.open(intake.n_bytes, self._partial.validator) as body:
            self._check_size(body)
            changed = self._partial.validator != body.validator and self._partial.validator is not None
            if body.start not in (0, intake.n_bytes) or (changed and body.start):
                self._begin_anew(intake, None)
                raise TransientError("the server sent a different byte range than requested")
            if body.start != intake.n_bytes or intake.n_bytes == 0:
                self._begin_anew(intake, body.validator)
            for chunk in body.chunks():
                self._n_received += len(chunk)
                intake.add(chunk)
        if intake.n_bytes < self._remote.size:
            raise TransientError("the connection was closed early")

    def _check_size(self, body: Body) -> None:
        sent, listed = body.size, self._remote.size
        if sent is not None and sent != listed:
            raise WrongBytesError(f"the server sends {sent:,} bytes, but lists {listed:,}")

    def _begin_anew(self, intake: "_Intake", validator: str | None) -> None:
        intake.clear()
        self._partial.begin(validator)


class _Intake:
    """Appends received bytes to the partial file and updates the hash."""

    def __init__(self, file: BinaryIO, n_bytes: int, remote: RemoteFile, watch: Watch) -> None:
        self._file = file
        self._remote = remote
        self._watch = watch
        self.n_bytes = n_bytes
        self._digest = self._new_digest()
        watch.at(n_bytes)
        self._read_beginning()

    def add(self, chunk: bytes) -> None:
        """Append bytes. Raises WrongBytesError if the file grows larger than listed."""
        if self.n_bytes + len(chunk) > self._remote.size:
            raise WrongBytesError(f"the server sent more than the {self._remote.size:,} bytes that it lists")
        self._file.write(chunk)
        self._file.flush()  # survives a kill of this process
        if self._digest is not None:
            self._digest.update(chunk)
        self.n_bytes += len(chunk)
        self._watch.at(self.n_bytes)

    def clear(self) -> None:
        """Truncate to zero."""
        self._file.truncate(0)
        self._digest = self._new_digest()
        self.n_bytes = 0

    def check(self) -> None:
        """Raise WrongBytesError if the checksum differs from the listed one."""
        checksum = self._remote.checksum
        if checksum and self._digest and not checksum.is_of(self._digest):
            raise WrongBytesError(f"checksum mismatch ({checksum.algorithm})")

    def _new_digest(self) -> Digest | None:
        checksum = self._remote.checksum
        return checksum.begin(self._remote.size) if checksum else None

    def _read_beginning(self) -> None:
        self._file.flush()
        self._file.seek(0)
        while self._digest is not None and (chunk := self._file.read(_CHUNK_BYTES)):
            self._digest.update(chunk)
            self._watch.pause(0)
