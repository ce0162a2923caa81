"""A file elsewhere, as the engine sees it: what is known of it, and its bytes from any offset on."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Protocol

from gptfast_cli.core.digest import Checksum


class PassingError(Exception):
    """A fault that may pass: the connection broke, or the server is busy.

    wait_seconds: that the server asks to be left alone; None where it says nothing
    """

    def __init__(self, reason: str, *, wait_seconds: float | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.wait_seconds = wait_seconds


class UnreachableError(PassingError):
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
        """The bytes as they arrive; raises PassingError where they break off or stall."""
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

        Raises PassingError for what may pass, GptFastError for what will not.
        """
        ...
