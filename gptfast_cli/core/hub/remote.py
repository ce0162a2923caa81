"""Remote files: the protocol that every source implements, transient errors, and the retry policy."""

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
    """An error that a retry may cure: a broken connection, or a busy server.

    wait_seconds: the server's Retry-After; None if it sent none
    """

    def __init__(self, reason: str, *, wait_seconds: float | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.wait_seconds = wait_seconds


class UnreachableError(TransientError):
    """The connection failed; `setting` is the environment variable that holds the server's address."""

    def __init__(self, reason: str, setting: str) -> None:
        super().__init__(reason)
        self.setting = setting


class WrongBytesError(Exception):
    """The received file differs from the listed one in length or hash."""


class Body(Protocol):
    """The body of an HTTP response."""

    @property
    def start(self) -> int:
        """Offset of the first byte: the requested one, or 0 if the server ignored the range."""
        ...

    @property
    def size(self) -> int | None:
        """Bytes of the whole file, as the server reports; None if it does not."""
        ...

    @property
    def validator(self) -> str | None:
        """A strong ETag (RFC 9110, 8.8.3); None if the server sends none."""
        ...

    def chunks(self) -> Iterator[bytes]:
        """The bytes as they arrive. Raises TransientError if the transfer breaks off or stalls."""
        ...


class RemoteFile(Protocol):
    """One file of a source."""

    @property
    def name(self) -> str:
        """Path in the source, separated by slashes."""
        ...

    @property
    def size(self) -> int:
        """Size in bytes."""
        ...

    @property
    def version(self) -> str:
        """Identifier of the contents, such as a commit."""
        ...

    @property
    def checksum(self) -> Checksum | None:
        """The strongest checksum that the source offers and this program can compute; None without any."""
        ...

    def open(self, start: int, validator: str | None) -> AbstractContextManager[Body]:
        """Request the bytes from `start` on, provided that the file still matches `validator` (If-Range).

        Raises TransientError for an error that a retry may cure, GptFastError for any other.
        """
        ...


T = TypeVar("T")

_AGAIN = "The received part is kept: run the same command again to continue."


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Exponential backoff.

    n_attempts:      consecutive attempts without progress before the transfer fails
    first_seconds:   wait after the first failure; doubled each time, up to `longest_seconds`
    longest_asked_seconds: longest Retry-After that is obeyed; a longer one fails at once
    """

    n_attempts: int = 6
    first_seconds: float = 0.5
    longest_seconds: float = 15.0
    longest_asked_seconds: float = 300.0

    def wait_seconds(self, n_failed: int, fault: TransientError) -> float | None:
        """Seconds to wait after `n_failed` attempts without progress; None to give up."""
        if n_failed >= self.n_attempts:
            return None
        if fault.wait_seconds is not None:
            return fault.wait_seconds if fault.wait_seconds <= self.longest_asked_seconds else None
        seconds = min(self.longest_seconds, self.first_seconds * 2.0 ** (n_failed - 1))
        return seconds * random.uniform(0.75, 1.25)  # noqa: S311  # jitter: clients do not retry in step


def with_retries(what: str, retry_policy: RetryPolicy, call: Callable[[], T]) -> Job[T]:
    """Call until it succeeds, retrying transient errors. Raises NetworkError when the policy gives up."""
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
                yield Note(f"{what}: {fault.reason}; retrying in {seconds:.0f} s.")
            time.sleep(seconds)


def given_up(what: str, fault: TransientError) -> NetworkError:
    """The NetworkError to raise after the last attempt."""
    if isinstance(fault, UnreachableError):
        return NetworkError(f"{what}: {fault.reason}.", f"Check the network, the proxy settings and {fault.setting}.")
    if fault.wait_seconds is not None:
        return NetworkError(
            f"{what}: {fault.reason}.", f"Run the same command again in {fault.wait_seconds:.0f} s to continue."
        )
    return NetworkError(f"{what}: {fault.reason}.", _AGAIN)


_MOST_BYTES = 10_000_000


def read_small(file: RemoteFile) -> bytes:
    """The contents of a small file. Raises CorruptError if it is over 10 MB or its hash differs, NetworkError."""
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
            raise CorruptError(f"{file.name}: checksum mismatch ({file.checksum.algorithm}).", "Try again.")
    return content
