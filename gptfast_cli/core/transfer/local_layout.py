"""A plain folder that a repository's files go to, as `hf download --local-dir` keeps one.

Beside the files lie notes about them (`core.download_notes`). A file that was changed since counts as not there.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gptfast_cli.core.download_notes import NOTES, SUFFIX, note_path, read_note, write_note
from gptfast_cli.core.files import PARTIAL, check_inside, write_whole
from gptfast_cli.core.transfer.place import Place
from gptfast_cli.core.transfer.remote import RemoteFile

_CLOCK_SECONDS = 1.0  # by which a file may be younger than the note about it


@dataclass(frozen=True, slots=True)
class LocalLayout:
    """A folder of a person's choice, and the name of the source that its files come from; `checks`: see Layout."""

    root: Path
    source: str
    checks: bool = False

    def place(self, file: RemoteFile) -> Place:
        """See Layout."""
        place = self._place(file.name)
        for path in (place.final, place.partial):
            check_inside(self.root, path.parent)
        return place

    def is_there(self, file: RemoteFile) -> bool:
        """See Layout; a file that nothing is noted about is compared by its checksum, where one is offered."""
        path, checksum = self.root / file.name, file.checksum
        if not path.is_file() or file.size != path.stat().st_size:
            return False
        version, value = (None, None) if self.checks else self._noted(file.name)
        if checksum is None:
            return version == file.version
        return value == checksum.value or checksum.is_of_file(path)

    def publish(self, file: RemoteFile) -> None:
        """See Layout."""
        write_note(self.root, file.name, version=file.version, checksum=file.checksum, source=self.source)

    def finish(self) -> bool:
        """See Layout."""
        ignore = self.root / ".cache/huggingface/.gitignore"
        if not ignore.exists():
            write_whole(ignore, "*")
        return True

    def beginnings(self) -> Iterator[Place]:
        """See Layout."""
        notes = self.root / NOTES
        for partial in sorted(notes.rglob(f"*{PARTIAL}")):
            yield self._place(partial.relative_to(notes).as_posix().removesuffix(PARTIAL))

    def left_by_others(self) -> Iterator[Path]:
        """See Layout."""
        yield from sorted((self.root / NOTES).rglob("*.incomplete"))

    def _place(self, name: str) -> Place:
        note = note_path(self.root, name)
        partial = note.with_name(note.name.removesuffix(SUFFIX) + PARTIAL)
        return Place(self.root / name, partial, note.with_suffix(".lock"))

    def _noted(self, name: str) -> tuple[str | None, str | None]:
        """The version and the hash that were noted for a file, if it is as it was then."""
        note = read_note(self.root, name)
        if note is None or (self.root / name).stat().st_mtime - _CLOCK_SECONDS > note.noted_at:
            return None, None
        return note.version, note.checksum.value if note.checksum else None
