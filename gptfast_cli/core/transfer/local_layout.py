"""A plain folder that a repository's files go to, as `hf download --local-dir` keeps one.

Beside the files, `.cache/huggingface/download` says for each of them which commit and hash it has, in the form that
huggingface_hub reads: three lines of text. A file that was changed since counts as not there.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from gptfast_cli.core.files import PARTIAL, write_whole
from gptfast_cli.core.transfer.place import Place
from gptfast_cli.core.transfer.remote import RemoteFile

_NOTES: Final = ".cache/huggingface/download"
_CLOCK_SECONDS = 1.0  # by which a file may be younger than the note about it


@dataclass(frozen=True, slots=True)
class LocalLayout:
    """A folder of a person's choice."""

    root: Path

    def place(self, file: RemoteFile) -> Place:
        """See Layout."""
        return self._place(file.name)

    def is_there(self, file: RemoteFile) -> bool:
        """See Layout; a file that nothing is noted about is compared by its checksum, where one is offered."""
        path, checksum = self.root / file.name, file.checksum
        if not path.is_file() or file.size != path.stat().st_size:
            return False
        version, etag = self._noted(file.name)
        if checksum is None:
            return version == file.version
        return etag == checksum.value or checksum.is_of_file(path)

    def publish(self, file: RemoteFile) -> None:
        """See Layout."""
        etag = file.checksum.value if file.checksum else ""
        write_whole(self._note(file.name), f"{file.version}\n{etag}\n{time.time()}\n")

    def finish(self) -> bool:
        """See Layout."""
        ignore = self.root / ".cache/huggingface/.gitignore"
        if not ignore.exists():
            write_whole(ignore, "*")
        return True

    def beginnings(self) -> Iterator[Place]:
        """See Layout."""
        notes = self.root / _NOTES
        for partial in sorted(notes.rglob(f"*{PARTIAL}")):
            yield self._place(partial.relative_to(notes).as_posix().removesuffix(PARTIAL))

    def left_by_others(self) -> Iterator[Path]:
        """See Layout."""
        yield from sorted((self.root / _NOTES).rglob("*.incomplete"))

    def _place(self, name: str) -> Place:
        note = self._note(name)
        partial = note.with_name(note.name.removesuffix(".metadata") + PARTIAL)
        return Place(self.root / name, partial, note.with_suffix(".lock"))

    def _note(self, name: str) -> Path:
        return self.root / _NOTES / f"{name}.metadata"

    def _noted(self, name: str) -> tuple[str | None, str | None]:
        """The version and the hash that were noted for a file, if it is as it was then."""
        try:
            version, etag, noted_at = self._note(name).read_text(encoding="utf-8").split("\n")[:3]
            unchanged = (self.root / name).stat().st_mtime - _CLOCK_SECONDS <= float(noted_at)
        except (OSError, ValueError):
            return None, None
        return (version, etag) if unchanged else (None, None)
