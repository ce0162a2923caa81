"""Origins of a download: a repository of the Hub, or a folder of an S3 bucket, as a list of files to fetch."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from gptfast_cli.core.checkpoints.downloads import BucketPath, RepoName
from gptfast_cli.core.errors import UsageError
from gptfast_cli.core.events import Job, Note, Progress
from gptfast_cli.core.hub.fetching import Fetched
from gptfast_cli.core.hub.parallel import TASK, fetch_all
from gptfast_cli.core.hub.remote import RemoteFile, RetryPolicy, with_retries
from gptfast_cli.core.hub.sources.hub import Listing, list_repo
from gptfast_cli.core.hub.target_paths import HubCacheLayout, Layout, LocalLayout
from gptfast_cli.core.settings import Settings

if TYPE_CHECKING:
    from gptfast_cli.core.hub.sources.s3 import S3File


@dataclass(frozen=True, slots=True)
class DownloadOptions:
    """Concurrency, retries and verification of a download.

    n_workers:     concurrent downloads
    force:         verify the hashes of existing files, and fetch those that differ
    stall_seconds: without a byte, after which a connection to S3 counts as stalled; HF_HUB_DOWNLOAD_TIMEOUT for the Hub
    """

    n_workers: int = 8
    retry_policy: RetryPolicy = RetryPolicy()
    force: bool = False
    stall_seconds: float = 10.0


class Origin(Protocol):
    """A remote model: its name, version and files."""

    @property
    def name(self) -> str:
        """The name of the model, before and after the download."""
        ...

    @property
    def pinned_name(self) -> str:
        """A name with the commit, valid also where the cache cannot keep that of a branch or tag."""
        ...

    @property
    def version(self) -> str | None:
        """The listed commit; None for S3."""
        ...

    @property
    def files(self) -> Sequence[RemoteFile]:
        """All files."""
        ...

    @property
    def layout(self) -> Layout:
        """Local paths of the files."""
        ...

    def described(self, names: Iterable[str]) -> Job[Sequence[RemoteFile]]:
        """The files of these names, with their sizes and checksums."""
        ...

    def fetch(self, files: Sequence[RemoteFile]) -> Job[dict[str, Fetched]]:
        """Fetch them into the layout; raises what `fetch_all` raises."""
        ...


@dataclass(frozen=True, slots=True)
class HubOrigin:
    """A repository at a commit."""

    repo: RepoName
    listing: Listing
    layout: Layout
    settings: Settings
    local_dir: Path | None
    terms: DownloadOptions

    @property
    def name(self) -> str:
        return str(self.repo)

    @property
    def pinned_name(self) -> str:
        return f"{self.repo.repo}@{self.listing.commit}"

    @property
    def version(self) -> str:
        return self.listing.commit

    @property
    def files(self) -> Sequence[RemoteFile]:
        return self.listing.files

    def described(self, names: Iterable[str]) -> Job[Sequence[RemoteFile]]:
        yield from ()
        by_name = {file.name: file for file in self.listing.files}
        return [by_name[name] for name in names]

    def fetch(self, files: Sequence[RemoteFile]) -> Job[dict[str, Fetched]]:
        # files that only Xet storage has are left to huggingface_hub
        for_library = {file.name: file for file in self.listing.files if file.needs_library}
        ours = [file for file in files if file.name not in for_library]
        fetched = yield from fetch_all(
            ours, self.layout, n_workers=self.terms.n_workers, retry_policy=self.terms.retry_policy
        )
        for name in (file.name for file in files if file.name in for_library):
            yield Note(f"{name}: is in Xet storage; huggingface_hub downloads it")
            file = for_library[name]
            path = file.fetch_by_library(
                hf_cache=self.settings.hf_cache, local_dir=self.local_dir, force=self.terms.force
            )
            is_known = file.checksum.is_of_file(path)
            fetched[name] = Fetched(name, file.size, file.checksum.algorithm if is_known else None, file.size)
            yield Progress(TASK, file.size, file.size, "bytes", part=name)
        return fetched


@dataclass(frozen=True, slots=True)
class S3Origin:
    """The files of a bucket below a prefix."""

    name: str
    files: Sequence["S3File"]
    layout: Layout
    terms: DownloadOptions
    version: None = None

    @property
    def pinned_name(self) -> str:
        return self.name

    def described(self, names: Iterable[str]) -> Job[Sequence[RemoteFile]]:
        # a listing has no checksums: one request for each file
        from gptfast_cli.core.hub.sources import s3  # noqa: PLC0415  # boto3 is an extra

        wanted = set(names)
        chosen = [file for file in self.files if file.name in wanted]
        return (
            yield from with_retries(
                self.name, self.terms.retry_policy, lambda: s3.described(chosen, self.terms.n_workers)
            )
        )

    def fetch(self, files: Sequence[RemoteFile]) -> Job[dict[str, Fetched]]:
        return fetch_all(files, self.layout, n_workers=self.terms.n_workers, retry_policy=self.terms.retry_policy)


def hub_origin(
    repo: RepoName, settings: Settings, local_dir: Path | None, endpoint: str | None, terms: DownloadOptions
) -> Job[HubOrigin]:
    """A repository of the Hub, in the Hugging Face cache or in `local_dir`; raises what `list_repo` raises."""
    revision = repo.revision or "main"
    listing = yield from list_repo(repo.repo, revision, endpoint=endpoint, retry_policy=terms.retry_policy)
    layout: Layout = HubCacheLayout(settings.hf_cache.absolute(), repo.repo, listing.commit, revision, terms.force)
    if local_dir is not None:
        layout = LocalLayout(local_dir.absolute(), repo.repo, terms.force)
    return HubOrigin(repo, listing, layout, settings, local_dir, terms)


def s3_origin(path: BucketPath, settings: Settings, local_dir: Path | None, terms: DownloadOptions) -> Job[S3Origin]:
    """A folder of a bucket, stored below the home or in `local_dir`.

    Raises UsageError without boto3, NotFoundError, NotAuthorizedError, NetworkError.
    """
    if find_spec("boto3") is None:
        raise UsageError(f"{path}: S3 downloads need boto3.", "Install it: pip install 'boto3[crt]'")
    from gptfast_cli.core.hub.sources import s3  # noqa: PLC0415  # boto3 is an extra

    # credentials may come from the network: instance metadata, single sign-on, an assumed role
    bucket = yield from with_retries(
        str(path),
        terms.retry_policy,
        lambda: s3.open_bucket(path.bucket, path.prefix, stall_seconds=terms.stall_seconds),
    )
    files = yield from with_retries(str(path), terms.retry_policy, lambda: s3.list_bucket(bucket))
    folder = (local_dir or path.folder(settings.home)).absolute()
    return S3Origin(str(path), files, LocalLayout(folder, str(path), terms.force), terms)
