"""Where a file goes: its final place, where its beginning lies until then, and whose lock guards both."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from gptfast_cli.core.transfer.remote import RemoteFile


@dataclass(frozen=True, slots=True)
class Place:
    """The paths of one file; `partial` is on the same disk as `final`, and has a name that stays the same."""

    final: Path
    partial: Path
    lock: Path


class Layout(Protocol):
    """A folder with rules of its own: the Hugging Face cache, or a plain folder.

    One that `checks` reads a file to see whether it is whole, and compares its hash; otherwise size and notes do.
    """

    @property
    def root(self) -> Path:
        """The folder that a model's files are found in at the end."""
        ...

    def place(self, file: RemoteFile) -> Place:
        """Where a file goes; its name has been checked."""
        ...

    def is_there(self, file: RemoteFile) -> bool:
        """Whether the file is there whole, from an earlier download or by another program."""
        ...

    def publish(self, file: RemoteFile) -> None:
        """Make a file that is at its final place findable under its name."""
        ...

    def finish(self) -> bool:
        """Make the whole findable under the name that was asked for, once all its files are; whether that is so."""
        ...

    def beginnings(self) -> Iterator[Place]:
        """The places of all beginnings that lie here, wanted or not."""
        ...

    def left_by_others(self) -> Iterator[Path]:
        """Unfinished files of other programs, which nobody goes on with."""
        ...
