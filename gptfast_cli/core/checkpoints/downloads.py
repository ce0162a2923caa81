"""Downloaded models: repositories in the Hugging Face cache, S3 prefixes, and the recorded source of a plain folder.

The layout is described at https://huggingface.co/docs/huggingface_hub/guides/manage-cache: `refs/<revision>` holds a
commit, `snapshots/<commit>` is the repository's folder at that commit.

An S3 prefix may be almost any text (https://docs.aws.amazon.com/AmazonS3/latest/userguide/object-keys.html). Each part
between slashes becomes a folder name in which characters that are not safe on every system are escaped as %XX, so that
no two prefixes share a folder and none leads out of its bucket's folder.
"""

import glob
import hashlib
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from gptfast_cli.core.digest import GIT_SHA1, SHA256, Checksum
from gptfast_cli.core.download_notes import NOTES, DownloadNote, read_note, sources_noted
from gptfast_cli.core.errors import CorruptError
from gptfast_cli.core.fields import DAMAGED
from gptfast_cli.core.files import is_file, is_folder
from gptfast_cli.core.settings import load_settings

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
    """Parsed `org/name[@revision]`; the revision is a branch, a tag or a commit, or None."""

    repo: str
    revision: str | None

    def __str__(self) -> str:
        return self.repo if self.revision is None else f"{self.repo}@{self.revision}"


def parse_repo(name: str) -> RepoName | None:
    """Parse `[hf://]org/name[@revision]`; None if the text is no such name.

    `--` in a name is refused, as by the Hub: it encodes the slash in the name of a cached folder.
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
    """The snapshot of `[hf://]org/name[@revision]` (default: `main`); None if the cache has none."""
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
    """The snapshot whose folder this is; None if the folder is no snapshot of a hub cache."""
    repo = path.parent.parent.name
    if path.parent.name != "snapshots" or not repo.startswith(_PREFIX):
        return None
    return Snapshot(repo.removeprefix(_PREFIX).replace("--", "/", 1), path.name, path)


def repo_folder(hf_cache: Path, repo: str) -> Path:
    """The folder of all that the cache holds of a repository."""
    return hf_cache / (_PREFIX + repo.replace("/", "--"))


def revisions(hf_cache: Path, repo: str) -> Iterator[tuple[RepoName, Path]]:
    """(name, folder) of each cached revision of a repository, `main` first; named by a ref, else by the commit."""
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


S3: Final = "s3://"

_BUCKET: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,62}")
_MAX_KEY_BYTES = 1024
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
_UNSAFE: Final = re.compile(
    r"^(?=(?:con|prn|aux|nul|com[0-9]|lpt[0-9])(?:\.|$)).|^[ .-]|[ .]$|[^\w .+=@(),'!~-]", re.IGNORECASE
)
_MAX_FOLDER_BYTES = 200  # of 255, some are for the names of unfinished files


@dataclass(frozen=True, slots=True)
class BucketPath:
    """Parsed `s3://bucket/prefix`; the prefix ends with a slash, or is empty for the whole bucket."""

    bucket: str
    prefix: str

    def __str__(self) -> str:
        text = f"{S3}{self.bucket}/{self.prefix}"
        return text if text.endswith("//") else text.removesuffix("/")

    def folder(self, home: Path) -> Path:
        """Folder of its downloaded files."""
        parts = self.prefix.split("/")[:-1]
        return home.joinpath("downloads", "s3", self.bucket, *map(_folder_name, parts))


def parse_bucket_path(text: str) -> BucketPath | None:
    """Parse `s3://bucket/prefix[/]`; None if the text is no valid bucket and prefix."""
    bucket, _, prefix = text.removeprefix(S3).partition("/")
    if not text.startswith(S3) or not _BUCKET.fullmatch(bucket) or not _is_prefix(prefix):
        return None
    return BucketPath(bucket, prefix if prefix.endswith("/") or not prefix else f"{prefix}/")


def find_bucket_path(home: Path, text: str) -> Path | None:
    """The folder of `s3://bucket/prefix`; None if it was not downloaded."""
    path = parse_bucket_path(text)
    if path is None:
        return None
    folder = path.folder(home)
    sources = sources_noted(folder)
    # file systems may be case-insensitive, and a file of a shorter prefix may have the name of this folder
    return folder if sources is not None and sources <= {str(path)} else None


def bucket_paths(home: Path) -> Iterator[tuple[BucketPath, Path]]:
    """(source, folder) of everything downloaded from S3."""
    for notes in sorted((home / "downloads" / "s3").rglob(NOTES)):
        folder = notes.parents[len(Path(NOTES).parts) - 1]
        for source in sorted(sources_noted(folder) or ()):
            path = parse_bucket_path(source)
            if path is not None and path.folder(home) == folder:
                yield path, folder


def _is_prefix(text: str) -> bool:
    """Whether it is a usable key prefix: within the bucket, short enough, no control characters."""
    depth = 0
    for part in text.split("/"):
        depth += -1 if part == ".." else part not in ("", ".")
        if depth < 0:
            return False
    try:
        return len(text.encode()) < _MAX_KEY_BYTES and not _CONTROL.search(text)
    except UnicodeEncodeError:
        return False


def _folder_name(part: str) -> str:
    name = _UNSAFE.sub(lambda match: "".join(f"%{byte:02X}" for byte in match[0].encode()), part) or "%"
    if len(name.encode()) <= _MAX_FOLDER_BYTES:
        return name
    return f"{name[:32]}%-{hashlib.sha256(part.encode()).hexdigest()}"


FETCH_AGAIN: Final = "The file is damaged or its download was cut short: fetch it again."
"""Hint for a file of unknown origin; `with_fetch_command` replaces it by the command where the origin is known."""

REBUILD: Final = "The checkpoint is damaged: convert or download it again."
"""The same for a checkpoint with a manifest."""

_GENERIC_HINTS: Final = ("", FETCH_AGAIN, REBUILD, DAMAGED)
_BLOBS: Final = {40: GIT_SHA1, 64: SHA256}  # by digits of their names


@dataclass(frozen=True, slots=True)
class _Noted:
    """A file in a plain folder, with the note that its download left."""

    root: Path
    note: DownloadNote


def downloaded_checksum(file: Path) -> Checksum | None:
    """Checksum of a file at its source; None if it is not known or the file was not downloaded.

    A file of a snapshot is a link to `blobs/<hash>`; a file in a plain folder has a download note.
    """
    noted = _noted(file)
    if noted is not None:
        return noted.note.checksum
    blob = file.resolve()
    if blob.parent.name != "blobs" or len(blob.name) not in _BLOBS or not set(blob.name) <= set("0123456789abcdef"):
        return None
    return Checksum(_BLOBS[len(blob.name)], blob.name)


def fetch_command(path: Path, damaged: Sequence[Path] = ()) -> str | None:
    """The command that downloads damaged files of a file's or folder's source again; None if it was not downloaded.

    The command compares every hash and fetches what differs. In a plain folder from the Hub it is limited to `damaged`,
    if given, since the user may have changed other files. S3 objects may have changed: then all are fetched.
    """
    path = path.absolute()
    snapshot = next(filter(None, map(snapshot_at, [path, *path.parents])), None)
    if snapshot is not None:
        return _of_snapshot(snapshot)
    noted = next(filter(None, map(_noted, damaged or _files_of(path))), None)
    return None if noted is None else _of_noted(noted, damaged)


def with_fetch_command(error: CorruptError, path: Path) -> CorruptError:
    """The same error with the literal download command in place of a generic hint, if the source is known."""
    command = fetch_command(path) if error.hint in _GENERIC_HINTS else None
    return error if command is None else CorruptError(error.message, f"Fetch it again: {command}")


def _of_snapshot(snapshot: Snapshot) -> str:
    cache = snapshot.path.parents[2]
    command = shlex.join(["gptfast", "download", snapshot.repo, "--revision", snapshot.commit, "--force"])
    return command if cache == load_settings().hf_cache.absolute() else f"{_set('HF_HUB_CACHE', cache)} {command}"


def _of_noted(noted: _Noted, damaged: Sequence[Path]) -> str:
    source, root = noted.note.source or "ORG/NAME", noted.root
    words = ["gptfast", "download", source]
    path = parse_bucket_path(source)
    if not source.startswith(S3):
        words += ["--revision", noted.note.version]
        words += [word for file in damaged for word in ("--include", glob.escape(file.relative_to(root).as_posix()))]
    if path is None or root != path.folder(load_settings().home).absolute():
        words += ["--local-dir", str(root)]
    return shlex.join([*words, "--force"])


def _set(variable: str, value: Path) -> str:
    return f"{variable}={shlex.quote(str(value))}"


def _noted(file: Path) -> _Noted | None:
    file = file.absolute()
    for root in file.parents:
        note = read_note(root, file.relative_to(root).as_posix())
        if note is not None:
            return _Noted(root, note)
    return None


def _files_of(path: Path) -> list[Path]:
    """The file itself, or the files of a downloaded folder."""
    if path.is_dir() and sources_noted(path) is not None:
        return sorted(file for file in path.iterdir() if file.is_file())
    return [path]
