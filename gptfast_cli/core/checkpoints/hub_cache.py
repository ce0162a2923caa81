"""The Hugging Face hub cache, as far as it is read here: `models--org--name/{refs,snapshots}`.

The layout is described at https://huggingface.co/docs/huggingface_hub/guides/manage-cache: `refs/<revision>` holds a
commit, `snapshots/<commit>` is the repository's folder at that commit.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_PREFIX = "models--"
_MAX_NAME = 200
_SHA256 = re.compile(r"[0-9a-f]{64}")
_REPO = re.compile(r"(?:hf://)?(?P<repo>[\w.-]+(?:/[\w.-]+)?)(?:@(?P<revision>[\w./-]+))?")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A repository at one commit, in the cache."""

    repo: str
    commit: str
    path: Path


@dataclass(frozen=True, slots=True)
class RepoName:
    """`org/name[@revision]`, taken apart; the revision is a branch, a tag or a commit, or None."""

    repo: str
    revision: str | None

    def __str__(self) -> str:
        return self.repo if self.revision is None else f"{self.repo}@{self.revision}"


def parse_repo(name: str) -> RepoName | None:
    """A repository's name and revision, where `hf://` may stand before them; None where the text is none."""
    match = _REPO.fullmatch(name)
    if match is None or ".." in name or len(name) > _MAX_NAME:
        return None
    return RepoName(match["repo"], match["revision"])


def find_snapshot(hf_cache: Path, name: str) -> Snapshot | None:
    """The snapshot of `org/name[@revision]`, where `hf://` may stand before it; None where the cache has none.

    Without a revision it is that of `main`.
    """
    parsed = parse_repo(name)
    if parsed is None:
        return None
    repo, revision = parsed.repo, parsed.revision or "main"
    folder = hf_cache / (_PREFIX + repo.replace("/", "--"))
    ref = folder / "refs" / revision
    commit = ref.read_text(encoding="utf-8").strip() if ref.is_file() else revision
    path = folder / "snapshots" / commit
    return Snapshot(repo, commit, path) if path.is_dir() else None


def snapshot_at(path: Path) -> Snapshot | None:
    """The snapshot whose folder this is; None where the folder is no snapshot of a hub cache."""
    repo = path.parent.parent.name
    if path.parent.name != "snapshots" or not repo.startswith(_PREFIX):
        return None
    return Snapshot(repo.removeprefix(_PREFIX).replace("--", "/", 1), path.name, path)


def blob_sha256(file: Path) -> str | None:
    """The SHA-256 that the hub gave for a file of a snapshot; None where it gave none, or the file is elsewhere.

    A file of a snapshot is a link to `blobs/<etag>`, and the etag of a large file is its SHA-256.
    """
    blob = file.resolve()
    return blob.name if blob.parent.name == "blobs" and _SHA256.fullmatch(blob.name) else None


def cached_repos(hf_cache: Path) -> Iterator[str]:
    """Names of the model repositories in the cache, in order."""
    if hf_cache.is_dir():
        for folder in sorted(hf_cache.iterdir()):
            if folder.name.startswith(_PREFIX) and (folder / "snapshots").is_dir():
                yield folder.name.removeprefix(_PREFIX).replace("--", "/", 1)
