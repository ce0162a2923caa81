"""Where downloaded files go: a plain folder, or the blob and snapshot layout of the Hugging Face cache.

Beside the files lie notes about them (`core.download_notes`). A file that was changed since counts as not there.

As https://huggingface.co/docs/huggingface_hub/guides/manage-cache describes it. The branch in `refs` moves last, when
all files are there: until then every program sees the old commit, or none.
"""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from gptfast_cli.core.download_notes import (
    NOTES,
    SUFFIX,
    note_path,
    read_note,
    write_note,
)
from gptfast_cli.core.files import (
    PARTIAL,
    check_inside,
    sibling,
    write_whole,
)
from gptfast_cli.core.hub.remote import RemoteFile


@dataclass(frozen=True, slots=True)
class TargetPaths:
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

    def place(self, file: RemoteFile) -> TargetPaths:
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

    def beginnings(self) -> Iterator[TargetPaths]:
        """The places of all beginnings that lie here, wanted or not."""
        ...

    def left_by_others(self) -> Iterator[Path]:
        """Unfinished files of other programs, which nobody goes on with."""
        ...


_CLOCK_SECONDS = 1.0  # by which a file may be younger than the note about it


@dataclass(frozen=True, slots=True)
class LocalLayout:
    """A folder of a person's choice, and the name of the source that its files come from; `checks`: see Layout."""

    root: Path
    source: str
    checks: bool = False

    def place(self, file: RemoteFile) -> TargetPaths:
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

    def beginnings(self) -> Iterator[TargetPaths]:
        """See Layout."""
        notes = self.root / NOTES
        for partial in sorted(notes.rglob(f"*{PARTIAL}")):
            yield self._place(partial.relative_to(notes).as_posix().removesuffix(PARTIAL))

    def left_by_others(self) -> Iterator[Path]:
        """See Layout."""
        yield from sorted((self.root / NOTES).rglob("*.incomplete"))

    def _place(self, name: str) -> TargetPaths:
        note = note_path(self.root, name)
        partial = note.with_name(note.name.removesuffix(SUFFIX) + PARTIAL)
        return TargetPaths(self.root / name, partial, note.with_suffix(".lock"))

    def _noted(self, name: str) -> tuple[str | None, str | None]:
        """The version and the hash that were noted for a file, if it is as it was then."""
        note = read_note(self.root, name)
        if note is None or (self.root / name).stat().st_mtime - _CLOCK_SECONDS > note.noted_at:
            return None, None
        return note.version, note.checksum.value if note.checksum else None


@dataclass(frozen=True, slots=True)
class HubCacheLayout:
    """One repository in the cache, at one commit.

    revision: the branch or tag that it was asked for by
    checks:   see Layout
    """

    hf_cache: Path
    repo: str
    commit: str
    revision: str
    checks: bool = False

    @property
    def root(self) -> Path:
        """See Layout."""
        return self._folder / "snapshots" / self.commit

    def place(self, file: RemoteFile) -> TargetPaths:
        """See Layout."""
        return self._place(_key(file))

    def is_there(self, file: RemoteFile) -> bool:
        """See Layout."""
        return any(self._is_whole(path, file) for path in (self.root / file.name, self.place(file).final))

    def publish(self, file: RemoteFile) -> None:
        """See Layout."""
        name, blob = self.root / file.name, self.place(file).final
        if (name.exists() and blob.exists() and name.samefile(blob)) or self._is_whole(name, file):
            return
        check_inside(self._folder, name.parent)
        name.parent.mkdir(parents=True, exist_ok=True)
        link = sibling(name, PARTIAL)
        try:
            link.symlink_to(os.path.relpath(blob, name.parent))
        except (OSError, NotImplementedError):  # Windows, without the right to make links
            try:
                link.hardlink_to(blob)
            except OSError:
                shutil.copyfile(blob, link)
        link.replace(name)

    def finish(self) -> bool:
        """See Layout; a revision may have no place in `refs`: `a/b` beside `a`, or a name that the system refuses."""
        if self.revision == self.commit:
            return True
        ref = self._folder / "refs" / self.revision
        try:
            if not ref.is_file() or ref.read_text(encoding="utf-8") != self.commit:
                write_whole(ref, self.commit)
        except OSError:
            return False
        return True

    def beginnings(self) -> Iterator[TargetPaths]:
        """See Layout."""
        for partial in sorted(self._blobs.glob(f"*{PARTIAL}")):
            yield self._place(partial.name.removesuffix(PARTIAL))

    def left_by_others(self) -> Iterator[Path]:
        """See Layout."""
        yield from sorted(self._blobs.glob("*.incomplete"))  # huggingface_hub's

    def _is_whole(self, path: Path, file: RemoteFile) -> bool:
        try:
            same_size = path.is_file() and file.size == path.stat().st_size
            return same_size and (not self.checks or (file.checksum is not None and file.checksum.is_of_file(path)))
        except OSError:
            return False

    def _place(self, key: str) -> TargetPaths:
        lock = self.hf_cache / ".locks" / self._folder.name / f"{key}.lock"  # that of huggingface_hub
        return TargetPaths(self._blobs / key, self._blobs / f"{key}{PARTIAL}", lock)

    @property
    def _folder(self) -> Path:
        return self.hf_cache / f"models--{self.repo.replace('/', '--')}"

    @property
    def _blobs(self) -> Path:
        return self._folder / "blobs"


def _key(file: RemoteFile) -> str:
    """What the Hub sends as ETag: the SHA-256 of a large file, the git hash of a small one."""
    assert file.checksum is not None, f"{file.name}: the Hub has a hash for every file"
    return file.checksum.value
