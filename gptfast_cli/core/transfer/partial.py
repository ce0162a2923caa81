"""The beginning of a file, and beside it, in JSON, what it is the beginning of.

The name stays the same from run to run, so the next one goes on where the last was stopped, by whatever. Nothing is
believed that the note beside it does not say, and the hash of the whole decides in the end.
"""

import json
import os
from pathlib import Path
from typing import BinaryIO, Final

from gptfast_cli.core.errors import CorruptError
from gptfast_cli.core.fields import read_fields
from gptfast_cli.core.files import PARTIAL, is_own_file, open_plain, remove_plain, write_whole
from gptfast_cli.core.transfer.remote import RemoteFile

_NOTE: Final = ".json"


class Partial:
    """The beginning of one file, at a path that ends in `.gptfast-partial`."""

    def __init__(self, path: Path, remote: RemoteFile) -> None:
        assert path.name.endswith(PARTIAL), path
        self.path = path
        self._note = note_of(path)
        self._remote = remote
        self.validator: str | None = None

    def resume(self) -> int:
        """How many bytes to go on from; 0 after clearing away what belongs to another file or version."""
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
        """Note what is beginning here, before the first byte of it is written."""
        self.validator = validator
        note = {"name": self._remote.name, "commit": self._remote.version, "etag": validator, **self._identity()}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self._note, json.dumps(note))

    def open(self) -> BinaryIO:
        """The beginning itself, to be read and appended to."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        return os.fdopen(open_plain(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND), "a+b")

    def publish(self, final: Path) -> None:
        """Give the whole file its final name; it is on the disk already."""
        final.parent.mkdir(parents=True, exist_ok=True)
        try:
            self.path.replace(final)
        except IsADirectoryError as error:
            raise CorruptError(f"{final}: is a folder, where a file belongs.", "Remove it first.") from error
        self._note.unlink(missing_ok=True)

    def discard(self) -> None:
        """Begin anew."""
        self.validator = None
        remove_plain(self.path)
        remove_plain(self._note)

    def _identity(self) -> dict[str, object]:
        """What must be equal for the bytes to count: the hash where there is one, else the version they are of."""
        checksum = self._remote.checksum
        algorithm, of = (checksum.algorithm, checksum.value) if checksum else (None, self._remote.version)
        return {"size": self._remote.size, "hash": algorithm, "of": of}


def note_of(partial: Path) -> Path:
    """The file that says what a beginning is the beginning of."""
    return partial.with_name(f"{partial.name}{_NOTE}")
