"""Fetching one file: from where the last run stopped, through whatever breaks, to a whole verified file in place."""

import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO, Protocol

from gptfast_cli.core.errors import CorruptError, NetworkError
from gptfast_cli.core.files import disk_full_named, sync_folder
from gptfast_cli.core.transfer.digest import Digest, new_digest, strongest
from gptfast_cli.core.transfer.lock import held
from gptfast_cli.core.transfer.partial import Partial
from gptfast_cli.core.transfer.place import Layout, Place
from gptfast_cli.core.transfer.remote import Body, PassingError, RemoteFile, UnreachableError, WrongBytesError

_CHUNK_BYTES = 1 << 20
_AGAIN = "What arrived is kept: give the same command again, and it goes on from there."


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to go on where nothing arrives.

    n_attempts:      in a row that bring nothing new, before it ends
    first_seconds:   to wait after the first; doubled each time, up to `longest_seconds`
    longest_asked_seconds: that a server may ask to wait; beyond, the person is told instead
    """

    n_attempts: int = 6
    first_seconds: float = 0.5
    longest_seconds: float = 15.0
    longest_asked_seconds: float = 300.0

    def wait_seconds(self, n_failed: int, fault: PassingError) -> float | None:
        """How long to wait after so many attempts in vain; None where it is time to give up."""
        if n_failed >= self.n_attempts:
            return None
        if fault.wait_seconds is not None:
            return fault.wait_seconds if fault.wait_seconds <= self.longest_asked_seconds else None
        seconds = min(self.longest_seconds, self.first_seconds * 2.0 ** (n_failed - 1))
        return seconds * random.uniform(0.75, 1.25)  # noqa: S311  # so that not all come back at once


class Watch(Protocol):
    """Who looks on while a file is fetched, and may call it off."""

    def at(self, done: int) -> None:
        """So many bytes of the file are here."""
        ...

    def note(self, text: str) -> None:
        """Something that a person should know."""
        ...

    def pause(self, seconds: float) -> None:
        """Wait; raises CancelledError where the work was called off, as `at` does."""
        ...


@dataclass(frozen=True, slots=True)
class Fetched:
    """A file that is in its place now.

    verified_by: the hash that it was verified by; None where the source offers none
    n_received:  bytes that came over the network for it, those in vain included
    was_there:   another process brought it meanwhile
    """

    name: str
    n_bytes: int
    verified_by: str | None
    n_received: int = 0
    was_there: bool = False


def fetch(remote: RemoteFile, layout: Layout, *, watch: Watch, patience: Patience) -> Fetched:
    """Fetch a file into its place and make it findable.

    Raises NetworkError where nothing arrives any more, CorruptError where it arrived twice with another length or
    hash than it should have, DiskFullError, and what the source raises for good.
    """
    place = layout.place(remote)
    when_taken = _told_once(watch, f"{remote.name}: another process is fetching it; waiting.")
    with held(place.lock, when_taken=when_taken, pause=watch.pause):
        if layout.is_there(remote):
            layout.publish(remote)
            watch.at(remote.size or 0)
            return Fetched(remote.name, remote.size or 0, None, was_there=True)
        named = place.final.with_name(remote.name.rpartition("/")[2])  # in the cache it is called by its hash
        with disk_full_named(named, "what arrived is kept"):
            fetched = _Fetch(remote, place, watch, patience).run()
            layout.publish(remote)
            sync_folder(place.final.parent)
        return fetched


def patiently_explained(what: str, fault: PassingError) -> NetworkError:
    """The error that ends a series of faults."""
    if isinstance(fault, UnreachableError):
        return NetworkError(f"{what}: {fault.reason}.", "Check the network, the proxy settings and HF_ENDPOINT.")
    if fault.wait_seconds is not None:
        return NetworkError(
            f"{what}: {fault.reason}.", f"Give the same command again in {fault.wait_seconds:.0f} s: it goes on."
        )
    return NetworkError(f"{what}: {fault.reason}.", _AGAIN)


def _told_once(watch: Watch, text: str) -> Callable[[], None]:
    return lambda: watch.note(text)


class _Fetch:
    """The work on one file, under its lock."""

    def __init__(self, remote: RemoteFile, place: Place, watch: Watch, patience: Patience) -> None:
        self._remote = remote
        self._place = place
        self._watch = watch
        self._patience = patience
        self._partial = Partial(place.partial, remote)
        self._algorithm = strongest(remote.hashes)
        self._n_received = 0

    def run(self) -> Fetched:
        """Receive, verify and publish; once more from the beginning where the bytes are not the ones promised."""
        try:
            n_bytes = self._once()
        except WrongBytesError as error:
            self._partial.discard()
            self._watch.note(f"{self._remote.name}: {error}; fetching it anew.")
            try:
                n_bytes = self._once()
            except WrongBytesError as again:
                self._partial.discard()
                raise CorruptError(
                    f"{self._remote.name}: {again}, twice.",
                    "The server sends another file than it lists: try again later, or another --revision.",
                ) from again
        self._partial.publish(self._place.final)
        return Fetched(self._remote.name, n_bytes, self._algorithm, self._n_received)

    def _once(self) -> int:
        n_bytes = self._partial.resume()
        with self._partial.open() as file:
            intake = _Intake(file, n_bytes, self._remote, self._watch)
            self._receive(intake)
            file.flush()
            os.fsync(file.fileno())
            if self._algorithm and intake.hexdigest(self._algorithm) != self._remote.hashes[self._algorithm]:
                raise WrongBytesError(f"its bytes are damaged (their {self._algorithm} differs)")
        return intake.n_bytes

    def _receive(self, intake: "_Intake") -> None:
        """Ask again and again, until all is there; raises NetworkError where attempts bring nothing new."""
        n_failed, furthest = 0, intake.n_bytes
        while intake.n_bytes != self._remote.size:
            try:
                self._receive_once(intake)
                return
            except PassingError as fault:
                n_failed = 1 if intake.n_bytes > furthest else n_failed + 1
                furthest = max(furthest, intake.n_bytes)
                seconds = self._patience.wait_seconds(n_failed, fault)
                if seconds is None:
                    raise patiently_explained(self._remote.name, fault) from None  # its cause may tell a secret
                if seconds >= 1:
                    self._watch.note(f"{self._remote.name}: {fault.reason}; again in {seconds:.0f} s.")
                self._watch.pause(seconds)

    def _receive_once(self, intake: "_Intake") -> None:
        with self._remote.open(intake.n_bytes, self._partial.validator) as body:
            self._check_size(body)
            changed = self._partial.validator != body.validator and self._partial.validator is not None
            if body.start not in (0, intake.n_bytes) or (changed and body.start):
                self._begin_anew(intake, None)
                raise PassingError("the server sent another part than it was asked for")
            if body.start != intake.n_bytes or intake.n_bytes == 0:
                self._begin_anew(intake, body.validator)
            for chunk in body.chunks():
                self._n_received += len(chunk)
                intake.add(chunk)
        if self._remote.size is not None and intake.n_bytes < self._remote.size:
            raise PassingError("the connection was closed early")

    def _check_size(self, body: Body) -> None:
        sent, listed = body.size, self._remote.size
        if sent is not None and listed is not None and sent != listed:
            raise WrongBytesError(f"the server sends {sent:,} bytes, and lists {listed:,}")

    def _begin_anew(self, intake: "_Intake", validator: str | None) -> None:
        intake.clear()
        self._partial.begin(validator)


class _Intake:
    """Bytes on their way into a file, hashed as they pass."""

    def __init__(self, file: BinaryIO, n_bytes: int, remote: RemoteFile, watch: Watch) -> None:
        self._file = file
        self._remote = remote
        self._watch = watch
        self.n_bytes = n_bytes
        self._digest = self._new_digest()
        watch.at(n_bytes)
        self._read_beginning()

    def add(self, chunk: bytes) -> None:
        """Append bytes; raises WrongBytesError where there are more than there should be."""
        if self._remote.size is not None and self.n_bytes + len(chunk) > self._remote.size:
            raise WrongBytesError(f"the server sends more than the {self._remote.size:,} bytes that it lists")
        self._file.write(chunk)
        self._file.flush()  # so that a kill loses none of it
        if self._digest is not None:
            self._digest.update(chunk)
        self.n_bytes += len(chunk)
        self._watch.at(self.n_bytes)

    def clear(self) -> None:
        """Forget all of it."""
        self._file.truncate(0)
        self._digest = self._new_digest()
        self.n_bytes = 0

    def hexdigest(self, algorithm: str) -> str:
        """The hash of all bytes."""
        if self._digest is None:  # a git hash begins with the size, which nobody knew
            self._digest = new_digest(algorithm, self.n_bytes)
            self._read_beginning()
        return self._digest.hexdigest()

    def _new_digest(self) -> Digest | None:
        algorithm, size = strongest(self._remote.hashes), self._remote.size
        return None if algorithm is None or size is None else new_digest(algorithm, size)

    def _read_beginning(self) -> None:
        self._file.flush()
        self._file.seek(0)
        while self._digest is not None and (chunk := self._file.read(_CHUNK_BYTES)):
            self._digest.update(chunk)
            self._watch.pause(0)
