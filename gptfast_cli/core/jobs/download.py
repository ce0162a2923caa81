"""Download of a model from the Hugging Face Hub or S3: verified, resumable; it becomes the current model."""

import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gptfast_cli.core.checkpoints.downloads import (
    S3,
    BucketPath,
    RepoName,
    find_snapshot,
    parse_bucket_path,
    parse_repo,
)
from gptfast_cli.core.checkpoints.quantization_config import CONFIG_FILE, quantization_config
from gptfast_cli.core.checkpoints.reader import open_checkpoint
from gptfast_cli.core.checkpoints.store import make_current
from gptfast_cli.core.errors import DiskFullError, GptFastError, NotFoundError, UsageError
from gptfast_cli.core.events import Job, Note, Progress
from gptfast_cli.core.families import read_model
from gptfast_cli.core.fields import parse_fields
from gptfast_cli.core.hub.fetching import Fetched
from gptfast_cli.core.hub.parallel import sweep
from gptfast_cli.core.hub.remote import RemoteFile, read_small
from gptfast_cli.core.hub.selection import check_file_name, is_file_name, matching
from gptfast_cli.core.hub.sources.hub import is_offline
from gptfast_cli.core.hub.target_paths import Layout
from gptfast_cli.core.jobs.origins import DownloadOptions, Origin, hub_origin, s3_origin
from gptfast_cli.core.quantities import size
from gptfast_cli.core.quantize.sizes import MemoryNeed, memory_need
from gptfast_cli.core.settings import Settings

_SLACK_BYTES = 1_000_000  # notes, links and locks beside the files


@dataclass(frozen=True, slots=True)
class DownloadRequest:
    """What to download, and where to.

    source:    `[hf://]org/name[@revision]` or `s3://bucket/prefix`
    include, exclude: patterns of file names; without `include`, the files that a model needs
    local_dir: a plain folder; None: the Hugging Face cache, or for S3 a folder of the home
    terms:     concurrency, retries and verification
    endpoint:  URL of the Hub; None: HF_ENDPOINT, else huggingface.co
    """

    source: str
    settings: Settings
    revision: str | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    local_dir: Path | None = None
    dry_run: bool = False
    endpoint: str | None = None
    terms: DownloadOptions = DownloadOptions()

    @property
    def folder(self) -> Path | None:
        """The plain folder to put the files into, if one was named."""
        return self.local_dir and self.local_dir.expanduser()


@dataclass(frozen=True, slots=True)
class DownloadedFile:
    """One file; `verified_by`: the kind of hash that was compared during the download, None: none.

    was_there: it existed before, and nothing was fetched
    n_begun:   bytes of an unfinished earlier download, which this one resumes
    """

    name: str
    n_bytes: int
    was_there: bool
    verified_by: str | None = None
    n_begun: int = 0


@dataclass(frozen=True, slots=True)
class Downloaded:
    """The downloaded model, or the plan of a dry run.

    commit:        None for S3
    free_bytes:    on the target disk, before the download
    missing_bytes: of the files that did not exist before; files with equal contents share one place in the cache
    n_received:    bytes received over the network, failed attempts included
    memory:        memory needed to run it; of a dry run only, None for an unknown family
    is_current:    it is the current model now
    """

    path: Path
    name: str
    commit: str | None
    files: tuple[DownloadedFile, ...]
    free_bytes: int
    missing_bytes: int = 0
    n_received: int = 0
    memory: MemoryNeed | None = None
    is_written: bool = True
    is_current: bool = False

    @property
    def n_bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.n_bytes for file in self.files)


def run(request: DownloadRequest) -> Job[Downloaded]:
    """Fetch a model, each file verified before it is seen under its name, and make it the current one.

    Raises NotFoundError, NotAuthorizedError, NetworkError, CorruptError if what arrives is not what is listed or
    a file's name is unsafe, DiskFullError. Whatever arrived is kept for the next time; a branch moves to the new
    commit when all of it is there.
    """
    if request.source.startswith(S3):
        path = _bucket_path(request)
        bucket = yield from s3_origin(path, request.settings, request.folder, request.terms)
        return (yield from _download(bucket, request))
    name = _repo_name(request)
    if is_offline():
        return (yield from _offline(name, request))
    repo = yield from hub_origin(name, request.settings, request.folder, request.endpoint, request.terms)
    return (yield from _download(repo, request))


def _download(origin: Origin, request: DownloadRequest) -> Job[Downloaded]:
    layout = origin.layout
    files = yield from origin.described(_chosen(origin, request))
    missing = yield from _missing(files, layout, checks=request.terms.force)
    to_fetch = list({layout.place(file).final: file for file in missing}.values())  # equal contents share a place
    free_bytes = shutil.disk_usage(_existing(layout.root)).free
    result = Downloaded(
        layout.root, origin.name, origin.version, (), free_bytes, missing_bytes=sum(file.size for file in to_fetch)
    )
    if request.dry_run:
        memory = yield from _memory(origin)
        plan = tuple(_planned(file, layout, missing=missing, to_fetch=to_fetch) for file in files)
        return replace(result, files=plan, memory=memory, is_written=False)
    _check_space(layout, to_fetch, free_bytes)
    sweep(layout, names={file.name for file in files}, going_on={layout.place(file).partial for file in to_fetch})
    yield Note(
        _summary(origin, files, missing=missing, n_bytes=_to_fetch(layout, to_fetch), checks=request.terms.force)
    )
    fetched = yield from origin.fetch(to_fetch)
    for file in files:
        if file not in to_fetch:  # its contents may have come under another name or commit
            layout.publish(file)
    name = origin.name if layout.finish() else origin.pinned_name
    if name != origin.name:
        yield Note(f"The cache cannot store {origin.name} under this revision name; its name is {name}")
    is_current = yield from _make_current(layout.root, name, request)
    by_place = {layout.place(file).final: fetched[file.name] for file in to_fetch}
    return replace(
        result,
        name=name,
        files=tuple(_done(file, by_place.get(layout.place(file).final)) for file in files),
        n_received=sum(each.n_received for each in fetched.values()),
        is_current=is_current,
    )


def _missing(files: Sequence[RemoteFile], layout: Layout, *, checks: bool) -> Job[list[RemoteFile]]:
    """The files that are not there, or whose hashes differ where all are compared."""
    missing, done, total = [], 0, sum(file.size for file in files)
    for file in files:
        if not layout.is_there(file):
            missing.append(file)
        done += file.size
        if checks:
            yield Progress("verify", done, total, "bytes")
    return missing


def _bucket_path(request: DownloadRequest) -> BucketPath:
    if request.revision is not None:
        raise UsageError(f"{request.source}: an S3 source has no revisions.", "Leave out --revision.")
    path = parse_bucket_path(request.source)
    if path is None:
        raise UsageError(f"{request.source!r} is not a valid S3 path.", "Write s3://bucket/prefix.")
    return path


def _repo_name(request: DownloadRequest) -> RepoName:
    source = request.source
    name = parse_repo(source)
    if name is None:
        raise UsageError(
            f"{source!r} is not a valid repository name.", "Write org/name, org/name@revision or s3://bucket/prefix."
        )
    if request.revision is None:
        return name
    if name.revision not in (None, request.revision):
        raise UsageError(f"{source} and --revision {request.revision} name two revisions.", "Name one of them.")
    given = parse_repo(f"{name.repo}@{request.revision}")
    if given is None:
        raise UsageError(f"{request.revision!r} is not a valid revision name.", "Name a branch, a tag or a commit.")
    return given


def _offline(name: RepoName, request: DownloadRequest) -> Job[Downloaded]:
    if request.terms.force:
        raise UsageError(
            "--force asks the Hub for the hash of each file, but HF_HUB_OFFLINE is set.",
            f"Go online: HF_HUB_OFFLINE=0 gptfast download {shlex.quote(str(name))} --force",
        )
    snapshot = find_snapshot(request.settings.hf_cache, str(name))
    if snapshot is None or request.local_dir is not None:
        raise NotFoundError(
            f"{name}: is not in the Hugging Face cache, and HF_HUB_OFFLINE is set.",
            f"Go online: HF_HUB_OFFLINE=0 gptfast download {shlex.quote(str(name))}",
        )
    paths = [path for path in sorted(snapshot.path.rglob("*")) if path.is_file()]
    files = tuple(
        DownloadedFile(path.relative_to(snapshot.path).as_posix(), path.stat().st_size, was_there=True)
        for path in paths
    )
    is_current = False
    if not request.dry_run:
        is_current = yield from _make_current(snapshot.path, str(name), request)
    free_bytes = shutil.disk_usage(snapshot.path).free
    return Downloaded(
        snapshot.path,
        str(name),
        snapshot.commit,
        files,
        free_bytes,
        is_written=not request.dry_run,
        is_current=is_current,
    )


def _chosen(origin: Origin, request: DownloadRequest) -> list[str]:
    names = [file.name for file in origin.files]
    chosen = matching(names, request.include, request.exclude)
    if request.terms.force and not request.include:  # what was fetched by other patterns is compared too
        here = [name for name in names if is_file_name(name) and (origin.layout.root / name).is_file()]
        chosen = sorted({*chosen, *matching(here, ("*",), request.exclude)})
    for name in chosen:
        check_file_name(name, origin.name)
    if not chosen:
        shown = ", ".join(sorted(names)[:5]) or "nothing"
        raise NotFoundError(
            f"{origin.name}: contains no matching files.", f"It contains {shown}; select files with --include PATTERN."
        )
    return chosen


def _existing(path: Path) -> Path:
    return next(folder for folder in (path, *path.parents) if folder.exists())


def _check_space(layout: Layout, missing: Sequence[RemoteFile], free_bytes: int) -> None:
    needed = _to_fetch(layout, missing)
    if missing and needed + _SLACK_BYTES > free_bytes:
        raise DiskFullError(
            f"The download to {layout.root} needs {size(needed)}, and {size(free_bytes)} are free.",
            "Free some space, or choose another disk with --local-dir or HF_HOME.",
        )


def _to_fetch(layout: Layout, missing: Sequence[RemoteFile]) -> int:
    """Bytes that are still to come, beside what an earlier download has left."""
    return sum(max(0, file.size - _size(layout.place(file).partial)) for file in missing)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _memory(origin: Origin) -> Job[MemoryNeed | None]:
    """What a model of its config.json needs; None, and a note, where gptfast does not know this kind."""
    file = next((file for file in origin.files if file.name == CONFIG_FILE), None)
    if file is None:
        return None
    path = origin.layout.root / CONFIG_FILE
    text = path.read_bytes() if origin.layout.is_there(file) and path.is_file() else read_small(file)
    try:
        fields = parse_fields(text, CONFIG_FILE, infinity=True)
        return memory_need(read_model(fields).config, quantization_config(fields))
    except GptFastError as error:
        yield Note(f"gptfast cannot run this model: {error.message}")
        return None


def _planned(
    file: RemoteFile, layout: Layout, *, missing: Sequence[RemoteFile], to_fetch: Sequence[RemoteFile]
) -> DownloadedFile:
    n_begun = _size(layout.place(file).partial) if file in to_fetch else 0
    return DownloadedFile(file.name, file.size, was_there=file not in missing, n_begun=n_begun)


def _summary(
    origin: Origin, files: Sequence[RemoteFile], *, missing: Sequence[RemoteFile], n_bytes: int, checks: bool
) -> str:
    at = f"{origin.name} at {origin.version[:8]}" if origin.version else origin.name
    if not missing:
        return f"{at}: all {len(files)} files exist already" + (", with matching hashes" if checks else "")
    return f"{at}: {len(missing)} of {len(files)} files to fetch, {size(n_bytes)}"


def _make_current(folder: Path, name: str, request: DownloadRequest) -> Job[bool]:
    """Make it the current model where it is one that runs; else say why not."""
    try:
        open_checkpoint(folder)
    except GptFastError as error:
        yield Note(f"The model cannot run as it is: {error.message}")
        return False
    return (yield from make_current(request.settings.home, folder if request.local_dir is not None else name))


def _done(file: RemoteFile, fetched: Fetched | None) -> DownloadedFile:
    if fetched is None or fetched.was_there:
        return DownloadedFile(file.name, file.size, was_there=True)
    return DownloadedFile(file.name, fetched.n_bytes, was_there=False, verified_by=fetched.verified_by)
