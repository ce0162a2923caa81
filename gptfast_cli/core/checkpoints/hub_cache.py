"""The Hugging Face hub cache, as far as it is read here: `models--org--name/{refs,snapshots}`.

The layout is described at https://huggingface.co/docs/huggingface_hub/guides/manage-cache: `refs/<revision>` holds a
commit, `snapshots/<commit>` is the repository's folder at that commit.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gptfast_cli.core.files import is_file, is_folder

_PREFIX = "models--"
_MAIN = "main"
_REPO = re.compile(r"(?:hf://)?(?P<repo>(?:\w[\w.-]*/)?\w[\w.-]*)(?:@(?P<revision>.+))?")
_MAX_REPO = 200  # bytes of a folder's name are 255 at most
_NOT_IN_REVISION = re.compile(r"[\x00-\x20\x7f~^:?*\[\\\ud800-\udfff]|\.\.|@\{")
_COMMIT = re.compile(r"\w+")


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
    """A repository's name and revision, where `hf://` may stand before them; None where the text is none.

    `--` in a name is refused, as the Hub does: it stands for the slash in the name of a cached folder.
    """
    match = _REPO.fullmatch(name)
    if match is None or any(pair in match["repo"] for pair in ("..", "--")) or len(match["repo"]) > _MAX_REPO:
        return None
    revision = match["revision"]
    return RepoName(match["repo"], revision) if revision is None or is_revision(revision) else None


def is_revision(text: str) -> bool:
    """Whether git allows it as the name of a branch or a tag, as in `v1.0+cu118`, `feature/x` or `refs/pr/1`.

    Such a name is also a safe path below `refs`, where huggingface_hub keeps it as it is. The rules are those of
    https://git-scm.com/docs/git-check-ref-format with `--allow-onelevel`.
    """
    parts = text.split("/")
    return (
        text != "@"
        and not text.endswith(".")
        and not _NOT_IN_REVISION.search(text)
        and all(part and part[0] != "." and not part.endswith(".lock") for part in parts)
    )


def find_snapshot(hf_cache: Path, name: str) -> Snapshot | None:
    """The snapshot of `org/name[@revision]`, where `hf://` may stand before it; None where the cache has none.

    Without a revision it is that of `main`.
    """
    parsed = parse_repo(name)
    if parsed is None:
        return None
    repo, revision = parsed.repo, parsed.revision or _MAIN
    folder = repo_folder(hf_cache, repo)
    try:
        ref = folder / "refs" / revision
        commit = ref.read_text(encoding="utf-8").strip() if is_file(ref) else revision
        path = folder / "snapshots" / commit
        return Snapshot(repo, commit, path) if _COMMIT.fullmatch(commit) and is_folder(path) else None
    except OSError:  # too long for the name of a file, or not ours to read
        return None


def snapshot_at(path: Path) -> Snapshot | None:
    """The snapshot whose folder this is; None where the folder is no snapshot of a hub cache."""
    repo = path.parent.parent.name
    if path.parent.name != "snapshots" or not repo.startswith(_PREFIX):
        return None
    return Snapshot(repo.removeprefix(_PREFIX).replace("--", "/", 1), path.name, path)


def repo_folder(hf_cache: Path, repo: str) -> Path:
    """The folder of all that the cache holds of a repository."""
    return hf_cache / (_PREFIX + repo.replace("/", "--"))


def revisions(hf_cache: Path, repo: str) -> Iterator[tuple[RepoName, Path]]:
    """The revisions of a repository that the cache holds, `main` first, each by one of its names, and their folders."""
    folder = repo_folder(hf_cache, repo)
    refs = folder / "refs"
    names = sorted(str(ref.relative_to(refs)) for ref in refs.rglob("*") if is_file(ref))
    commits: dict[str, RepoName] = {}
    for name in sorted(names, key=lambda name: name != _MAIN):
        commit = (refs / name).read_text(encoding="utf-8").strip()
        commits.setdefault(commit, RepoName(repo, None if name == _MAIN else name))
    others = sorted(path.name for path in (folder / "snapshots").iterdir() if path.name not in commits)
    for commit in (*commits, *others):
        if is_folder(folder / "snapshots" / commit):
            yield commits.get(commit, RepoName(repo, commit)), folder / "snapshots" / commit


def cached_repos(hf_cache: Path) -> Iterator[str]:
    """Names of the model repositories in the cache, in order."""
    if is_folder(hf_cache):
        for folder in sorted(hf_cache.iterdir()):
            if folder.name.startswith(_PREFIX) and is_folder(folder / "snapshots"):
                yield folder.name.removeprefix(_PREFIX).replace("--", "/", 1)
