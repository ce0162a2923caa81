"""The Hugging Face cache as it is written: contents in `blobs` by their hash, names in `snapshots/<commit>` as links.

As https://huggingface.co/docs/huggingface_hub/guides/manage-cache describes it. The branch in `refs` moves last, when
all files are there: until then every program sees the old commit, or none.
"""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gptfast_cli.core.files import PARTIAL, check_inside, sibling, write_whole
from gptfast_cli.core.transfer.place import Place
from gptfast_cli.core.transfer.remote import RemoteFile


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

    def place(self, file: RemoteFile) -> Place:
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

    def beginnings(self) -> Iterator[Place]:
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

    def _place(self, key: str) -> Place:
        lock = self.hf_cache / ".locks" / self._folder.name / f"{key}.lock"  # that of huggingface_hub
        return Place(self._blobs / key, self._blobs / f"{key}{PARTIAL}", lock)

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
