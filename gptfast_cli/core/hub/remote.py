"""A file at a remote source, its errors, and how transient ones are retried."""

import random
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol, TypeVar

from gptfast_cli.core.digest import Checksum
from gptfast_cli.core.errors import CorruptError, NetworkError
from gptfast_cli.core.events import Job, Note


class TransientError(Exception):
    """A fault that may pass: the connection broke, or the server is busy.

    wait_seconds: that the server asks to be left alone; None where it says nothing
    """

    def __init__(self, reason: str, *, wait_seconds: float | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.wait_seconds = wait_seconds


class UnreachableError(TransientError):
    """No connection came about at all; `setting` names the variable that says where the server is."""

    def __init__(self, reason: str, setting: str) -> None:
        super().__init__(reason)
        self.setting = setting


class WrongBytesError(Exception):
    """What arrived is not the file that was promised: its length or its hash differs."""


class Body(Protocol):
    """The bytes that a server has begun to send."""

    @property
    def start(self) -> int:
        """Where in the file they begin: the offset asked for, or 0 where the server sends all of it instead."""
        ...

    @property
    def size(self) -> int | None:
        """Bytes of the whole file, as this server says; None where it does not."""
        ...

    @property
    def validator(self) -> str | None:
        """A strong ETag, by which the server knows this very version of the file again; None where it has none."""
        ...

    def chunks(self) -> Iterator[bytes]:
        """The bytes as they arrive; raises TransientError where they break off or stall."""
        ...


class RemoteFile(Protocol):
    """One file of a source."""

    @property
    def name(self) -> str:
        """Its path in the source, with slashes."""
        ...

    @property
    def size(self) -> int:
        """Its bytes."""
        ...

    @property
    def version(self) -> str:
        """What pins its contents, such as a commit."""
        ...

    @property
    def checksum(self) -> Checksum | None:
        """The strongest checksum of its contents that the source offers and we can compute; None without any."""
        ...

    def open(self, start: int, validator: str | None) -> AbstractContextManager[Body]:
        """Ask for the bytes from `start` on, if the file is still the one that `validator` stands for.

        Raises TransientError for what may pass, GptFastError for what will not.
        """
        ...


T = TypeVar("T")

_AGAIN = "What arrived is kept: give the same command again, and it goes on from there."


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How long to go on where nothing arrives.

    n_attempts:      in a row that bring nothing new, before it ends
    first_seconds:   to wait after the first; doubled each time, up to `longest_seconds`
    longest_asked_seconds: that a server may ask to wait; beyond, the person is told instead
    """

    n_attempts: int = 6
    first_seconds: float = 0.5
    longest_seconds: float = 15.0
    longest_asked_seconds: float = 300.0

    def wait_seconds(self, n_failed: int, fault: TransientError) -> float | None:
        """How long to wait after so many attempts in vain; None where it is time to give up."""
        if n_failed >= self.n_attempts:
            return None
        if fault.wait_seconds is not None:
            return fault.wait_seconds if fault.wait_seconds <= self.longest_asked_seconds else None
        seconds = min(self.longest_seconds, self.first_seconds * 2.0 ** (n_failed - 1))
        return seconds * random.uniform(0.75, 1.25)  # noqa: S311  # so that not all come back at once


def with_retries(what: str, retry_policy: RetryPolicy, call: Callable[[], T]) -> Job[T]:
    """What a call gives, again after faults that may pass; raises NetworkError where they do not."""
    n_failed = 0
    while True:
        try:
            return call()
        except TransientError as fault:
            n_failed += 1
            seconds = retry_policy.wait_seconds(n_failed, fault)
            if seconds is None:
                raise given_up(what, fault) from None
            if seconds >= 1:
                yield Note(f"{what}: {fault.reason}; again in {seconds:.0f} s.")
            time.sleep(seconds)


def given_up(what: str, fault: TransientError) -> NetworkError:
    """The error that ends a series of faults."""
    if isinstance(fault, UnreachableError):
        return NetworkError(f"{what}: {fault.reason}.", f"Check the network, the proxy settings and {fault.setting}.")
    if fault.wait_seconds is not None:
        return NetworkError(
            f"{what}: {fault.reason}.", f"Give the same command again in {fault.wait_seconds:.0f} s: it goes on."
        )
    return NetworkError(f"{what}: {fault.reason}.", _AGAIN)


_MOST_BYTES = 10_000_000


def read_small(file: RemoteFile) -> bytes:
    """The bytes of a small file; raises CorruptError where they are too many or their hash differs, NetworkError."""
    content = b""
    try:
        with file.open(0, None) as body:
            for chunk in body.chunks():
                content += chunk
                if len(content) > _MOST_BYTES:
                    raise CorruptError(f"{file.name}: is larger than any such file.")
    except TransientError as fault:
        raise given_up(file.name, fault) from None
    if file.checksum is not None:
        digest = file.checksum.begin(len(content))
        digest.update(content)
        if not file.checksum.is_of(digest):
            raise CorruptError(f"{file.name}: arrived damaged (its {file.checksum.algorithm} differs).", "Try again.")
    return content
