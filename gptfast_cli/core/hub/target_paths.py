"""Target paths of downloaded files: a local folder, or the blobs and snapshots of the Hugging Face cache.

In a local folder each file has a note (`core.download_notes`); a file modified after its note is downloaded again.
The cache follows https://huggingface.co/docs/huggingface_hub/guides/manage-cache. Its `refs/<branch>` is written last,
when all files are complete: until then every program sees the old commit, or none.
"""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from gptfast_cli.core.download_notes import NOTES, SUFFIX, note_path, read_note, write_note
from gptfast_cli.core.files import PARTIAL, check_inside, sibling, write_whole
from gptfast_cli.core.hub.remote import RemoteFile


@dataclass(frozen=True, slots=True)
class TargetPaths:
    """The paths of one file; `partial` is on the file system of `final`, and has the same name in every run."""

    final: Path
    partial: Path
    lock: Path


class Layout(Protocol):
    """Layout of a target folder: the Hugging Face cache, or a local folder.

    A layout with `checks` verifies existing files by their hash; otherwise size and note decide.
    """

    @property
    def root(self) -> Path:
        """The folder that holds the files of the model."""
        ...

    def place(self, file: RemoteFile) -> TargetPaths:
        """Target paths of a file whose name has been checked (`check_file_name`)."""
        ...

    def is_there(self, file: RemoteFile) -> bool:
        """Whether the complete file exists already."""
        ...

    def publish(self, file: RemoteFile) -> None:
        """Link a file at its final path under its name."""
        ...

    def finish(self) -> bool:
        """Publish the complete snapshot under the requested revision; returns whether that was possible."""
        ...

    def beginnings(self) -> Iterator[TargetPaths]:
        """Target paths of all partial files in this folder."""
        ...

    def left_by_others(self) -> Iterator[Path]:
        """Unfinished files of other programs."""
        ...


_CLOCK_SECONDS = 1.0  # tolerance between modification time and note


@dataclass(frozen=True, slots=True)
class LocalLayout:
    """A local folder, and the name of the source of its files; `checks`: see Layout."""

    root: Path
    source: str
    checks: bool = False

    def place(self, file: RemoteFile) -> TargetPaths:
        place = self._place(file.name)
        for path in (place.final, place.partial):
            check_inside(self.root, path.parent)
        return place

    def is_there(self, file: RemoteFile) -> bool:
        """A file without a note is compared by its checksum, if the source offers one."""
        path, checksum = self.root / file.name, file.checksum
        if not path.is_file() or file.size != path.stat().st_size:
            return False
        version, value = (None, None) if self.checks else self._noted(file.name)
        if checksum is None:
            return version == file.version
        return value == checksum.value or checksum.is_of_file(path)

    def publish(self, file: RemoteFile) -> None:
        write_note(self.root, file.name, version=file.version, checksum=file.checksum, source=self.source)

    def finish(self) -> bool:
        ignore = self.root / ".cache/huggingface/.gitignore"
        if not ignore.exists():
            write_whole(ignore, "*")
        return True

    def beginnings(self) -> Iterator[TargetPaths]:
        notes = self.root / NOTES
        for partial in sorted(notes.rglob(f"*{PARTIAL}")):
            yield self._place(partial.relative_to(notes).as_posix().removesuffix(PARTIAL))

    def left_by_others(self) -> Iterator[Path]:
        yield from sorted((self.root / NOTES).rglob("*.incomplete"))

    def _place(self, name: str) -> TargetPaths:
        note = note_path(self.root, name)
        partial = note.with_name(note.name.removesuffix(SUFFIX) + PARTIAL)
        return TargetPaths(self.root / name, partial, note.with_suffix(".lock"))

    def _noted(self, name: str) -> tuple[str | None, str | None]:
        """Version and hash from the note, if the file was not modified since."""
        note = read_note(self.root, name)
        if note is None or (self.root / name).stat().st_mtime - _CLOCK_SECONDS > note.noted_at:
            return None, None
        return note.version, note.checksum.value if note.checksum else None


@dataclass(frozen=True, slots=True)
class HubCacheLayout:
    """One repository of the Hugging Face cache at one commit.

    revision: the requested branch or tag
    checks:   see Layout
    """

    hf_cache: Path
    repo: str
    commit: str
    revision: str
    checks: bool = False

    @property
    def root(self) -> Path:
        return self._folder / "snapshots" / self.commit

    def place(self, file: RemoteFile) -> TargetPaths:
        return self._place(_key(file))

    def is_there(self, file: RemoteFile) -> bool:
        return any(self._is_whole(path, file) for path in (self.root / file.name, self.place(file).final))

    def publish(self, file: RemoteFile) -> None:
        name, blob = self.root / file.name, self.place(file).final
        if (name.exists() and blob.exists() and name.samefile(blob)) or self._is_whole(name, file):
            return
        check_inside(self._folder, name.parent)
        name.parent.mkdir(parents=True, exist_ok=True)
        link = sibling(name, PARTIAL)
        try:
            link.symlink_to(os.path.relpath(blob, name.parent))
        except (OSError, NotImplementedError):  # Windows without the right to create links
            try:
                link.hardlink_to(blob)
            except OSError:
                shutil.copyfile(blob, link)
        link.replace(name)

    def finish(self) -> bool:
        """A revision may have no path in `refs`: `a/b` beside `a`, or a name that the file system refuses."""
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
        for partial in sorted(self._blobs.glob(f"*{PARTIAL}")):
            yield self._place(partial.name.removesuffix(PARTIAL))

    def left_by_others(self) -> Iterator[Path]:
        yield from sorted(self._blobs.glob("*.incomplete"))  # huggingface_hub's

    def _is_whole(self, path: Path, file: RemoteFile) -> bool:
        try:
            same_size = path.is_file() and file.size == path.stat().st_size
            return same_size and (not self.checks or (file.checksum is not None and file.checksum.is_of_file(path)))
        except OSError:
            return False

    def _place(self, key: str) -> TargetPaths:
        lock = self.hf_cache / ".locks" / self._folder.name / f"{key}.lock"  # the lock of huggingface_hub
        return TargetPaths(self._blobs / key, self._blobs / f"{key}{PARTIAL}", lock)

    @property
    def _folder(self) -> Path:
        return self.hf_cache / f"models--{self.repo.replace('/', '--')}"

    @property
    def _blobs(self) -> Path:
        return self._folder / "blobs"


def _key(file: RemoteFile) -> str:
    """Blob name, the Hub's ETag: SHA-256 of an LFS file, git SHA-1 of any other."""
    assert file.checksum is not None, f"{file.name}: the Hub has a hash for every file"
    return file.checksum.value
