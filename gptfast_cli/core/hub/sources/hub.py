"""The Hugging Face Hub as a source: listings, files, and errors translated to ours.

Nothing of what the libraries say is passed on but a reason in a few words: their messages carry addresses that are
signed, and headers.

The Hub redirects large files to storage elsewhere; the session follows, and leaves the token behind. A file that is
kept in Xet storage alone, or is larger than plain HTTP serves, is left to huggingface_hub itself.
"""

import contextlib
import os
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, Protocol, TypeVar, cast
from urllib.parse import quote, urljoin

from huggingface_hub import HfApi, constants, get_token, hf_hub_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import (
    are_progress_bars_disabled,
    build_hf_headers,
    disable_progress_bars,
    enable_progress_bars,
    get_session,
    hf_raise_for_status,
    logging,
)

from gptfast_cli import __version__
from gptfast_cli.core.digest import GIT_SHA1, SHA256, Checksum
from gptfast_cli.core.errors import (
    CorruptError,
    GptFastError,
    NetworkError,
    NotAuthorizedError,
    NotFoundError,
    UsageError,
)
from gptfast_cli.core.events import Job
from gptfast_cli.core.hub.remote import (
    Body,
    RetryPolicy,
    TransientError,
    UnreachableError,
    WrongBytesError,
    given_up,
    with_retries,
)

HTTP_ERROR: Final = cast("type[Exception]", HfHubHTTPError.__bases__[0])
"""The base of what the HTTP library raises: huggingface_hub 1 builds on httpx, 2 on httpx2."""

_PASSING: Final = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529})
_RESET: Final = re.compile(r"\bt=(\d+)")  # RateLimit: "resolvers";r=0;t=55
_ADDRESS: Final = "HF_ENDPOINT"
_LOG_IN: Final = "hf auth login (or set HF_TOKEN)"


@dataclass(frozen=True, slots=True)
class Asked:
    """A request to a Hub: which repository, of which endpoint."""

    endpoint: str
    repo: str
    revision: str

    @property
    def page(self) -> str:
        """The web page of the repository."""
        return f"{self.endpoint}/{self.repo}"

    def check_token(self) -> None:
        """Raise NotAuthorizedError for a token that cannot be sent; the error of the library would show it."""
        token = get_token()
        if token is not None and not (token.isascii() and token.isprintable() and " " not in token):
            raise NotAuthorizedError("The Hugging Face token contains invalid characters.", f"Log in again: {_LOG_IN}")


def explained(error: HfHubHTTPError, asked: Asked, what: str) -> GptFastError | TransientError:
    """Our error for a response of the Hub that refuses; `what` names the file or the repository."""
    status, headers = error.response.status_code, error.response.headers
    if status in _PASSING:
        asked_wait = _asked_wait(headers.get("retry-after"), headers.get("ratelimit"))
        return TransientError(_busy(status), wait_seconds=asked_wait)
    if isinstance(error, GatedRepoError):
        return _gated(asked)
    if status in (401, 403):
        return _not_allowed(asked, status, what)
    if status in (404, 410):
        return _not_found(asked, what, no_revision=isinstance(error, RevisionNotFoundError))
    return NetworkError(f"{what}: the server returned HTTP {status}.", "Try again later.")


def fault_of(error: Exception, asked: Asked) -> TransientError | GptFastError:
    """A short description of an error of the HTTP library."""
    kind = type(error).__name__
    if kind in ("UnsupportedProtocol", "LocalProtocolError", "TooManyRedirects"):
        return NetworkError(
            f"{asked.endpoint}: the request failed ({kind}).", "Check HF_ENDPOINT and the proxy settings."
        )
    if kind.endswith("Timeout"):
        is_there = kind == "ReadTimeout"
        return (
            TransientError("the server stopped responding")
            if is_there
            else UnreachableError("the server does not respond", _ADDRESS)
        )
    if kind in ("RemoteProtocolError", "ReadError", "DecodingError"):
        return TransientError("the connection was lost")
    if kind == "ConnectError":
        return UnreachableError(f"no connection ({str(error) or 'refused'})", _ADDRESS)
    return TransientError(f"the request failed ({kind})")


def _gated(asked: Asked) -> NotAuthorizedError:
    if get_token() is None:
        return NotAuthorizedError(
            f"{asked.repo}: is a gated repository, and you are not logged in.",
            f"Request access on {asked.page}\nThen log in: {_LOG_IN}",
        )
    return NotAuthorizedError(
        f"{asked.repo}: is a gated repository: this account has no access, or its token lacks the permission.",
        f"Request access on {asked.page}\nWith access, log in with a token that may read gated repositories: {_LOG_IN}",
    )


def _not_allowed(asked: Asked, status: int, what: str) -> NotAuthorizedError:
    if status == 403:
        return NotAuthorizedError(
            f"{what}: access denied for this account (403).", f"See {asked.page}, or log in: {_LOG_IN}"
        )
    if get_token() is not None:
        return NotAuthorizedError(f"{asked.repo}: the Hub rejected the token.", f"Log in again: {_LOG_IN}")
    return NotAuthorizedError(
        f"{asked.repo}: is private or does not exist: the Hub requires a login.",
        f"Check the name, or log in: {_LOG_IN}",
    )


def _not_found(asked: Asked, what: str, *, no_revision: bool) -> NotFoundError:
    if no_revision:
        return NotFoundError(
            f"{asked.repo}: has no revision {asked.revision}.", f"Available revisions: {asked.page}/tree/main"
        )
    if what == asked.repo:
        return NotFoundError(
            f"{asked.repo}: not found on the Hub, or private.",
            f"Check the name; for a private repository log in: {_LOG_IN}",
        )
    return NotFoundError(f"{what}: no longer exists in {asked.repo}.", f"See its files: {asked.page}/tree/main")


def _busy(status: int) -> str:
    return "rate-limited by the server (429)" if status == 429 else f"server error ({status})"


def _asked_wait(retry_after: str | None, rate_limit: str | None) -> float | None:
    """Seconds to wait before the next request, as the server asks; a date in Retry-After is ignored."""
    if retry_after is not None and retry_after.strip().isdigit():
        return float(retry_after)
    match = _RESET.search(rate_limit or "")
    return float(match[1]) if match else None


T = TypeVar("T")

_HASH: Final = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_CONTENT_RANGE: Final = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")


@dataclass(frozen=True, slots=True)
class HubFile:
    """One file of a repository at a commit."""

    asked: Asked
    commit: str
    name: str
    size: int
    checksum: Checksum
    needs_library: bool = False

    @property
    def version(self) -> str:
        return self.commit

    @contextlib.contextmanager
    def open(self, start: int, validator: str | None) -> Iterator[Body]:
        url = f"{self.asked.endpoint}/{self.asked.repo}/resolve/{self.commit}/{quote(self.name)}"
        headers = {**_headers(), "accept-encoding": "identity"}  # a part of a compressed file is of no use
        if start:
            headers["range"] = f"bytes={start}-"
            if validator is not None:
                headers["if-range"] = validator
        with _faults_named(self.asked, self.name), contextlib.ExitStack() as stack:
            response = stack.enter_context(
                get_session().stream("GET", url, headers=headers, timeout=_timeout(), follow_redirects=True)
            )
            if response.status_code == 416:  # the partial file is longer than the remote one
                raise WrongBytesError("the file on the server is shorter than listed")
            hf_raise_for_status(response)
            yield _HttpBody(response, partial(_faults_named, self.asked, self.name))

    def fetch_by_library(self, *, hf_cache: Path, local_dir: Path | None, force: bool) -> Path:
        """Fetch this file with huggingface_hub, which knows Xet storage; raises what `open` raises.

        force: also where the library would say that it is here
        """
        line = shlex.join(["hf", "download", self.asked.repo, self.name, "--revision", self.commit])
        hint = f"Try again, or run it directly to see its message: {line}"
        quiet = are_progress_bars_disabled()
        disable_progress_bars()
        try:
            with _faults_named(self.asked, self.name):
                place = hf_hub_download(
                    self.asked.repo,
                    self.name,
                    revision=self.commit,
                    endpoint=self.asked.endpoint,
                    cache_dir=None if local_dir else hf_cache,
                    local_dir=local_dir,
                    force_download=force,
                )
        except TransientError as fault:
            raise given_up(self.name, fault) from None
        except OSError as error:
            if error.errno is not None:  # the system's, not the library's
                raise
            raise NetworkError(f"{self.name}: huggingface_hub could not download it.", hint) from None
        except RuntimeError:  # hf_xet's
            raise NetworkError(f"{self.name}: the download from Xet storage failed.", hint) from None
        finally:
            if not quiet:
                enable_progress_bars()
        return Path(place)


@dataclass(frozen=True, slots=True)
class Listing:
    """The files of a repository at the commit of a revision."""

    repo: str
    commit: str
    files: tuple[HubFile, ...]


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE is set, which blocks all requests."""
    return bool(constants.HF_HUB_OFFLINE)


def list_repo(repo: str, revision: str, *, endpoint: str | None, retry_policy: RetryPolicy) -> Job[Listing]:
    """List the files of a model repository; raises NotFoundError, NotAuthorizedError, NetworkError, CorruptError."""
    asked = Asked(endpoint or constants.ENDPOINT, repo, revision)
    asked.check_token()
    logging.set_verbosity_error()  # its warnings are reported in our own messages
    api = HfApi(endpoint=asked.endpoint, library_name="gptfast", library_version=__version__)
    info = yield from with_retries(
        repo,
        retry_policy,
        lambda: _answered(asked, lambda: api.model_info(repo, revision=revision, timeout=_timeout())),
    )
    commit = info.sha
    if not isinstance(commit, str) or not re.fullmatch(r"[0-9a-f]{7,64}", commit):
        raise _no_hub(asked)
    tree = yield from with_retries(repo, retry_policy, lambda: _answered(asked, lambda: _tree(asked, commit)))
    return Listing(repo, commit, tuple(_file(asked, commit, entry) for entry in tree))


def _tree(asked: Asked, commit: str) -> list[RepoFile]:
    """All files, page by page; the listing of huggingface_hub has no timeout and reports no progress."""
    files: list[RepoFile] = []
    url: str | None = f"{asked.endpoint}/api/models/{asked.repo}/tree/{commit}?recursive=true"
    seen: set[str] = set()
    while url is not None:
        if url in seen:
            raise _no_hub(asked)
        seen.add(url)
        headers = _headers() if url.startswith(f"{asked.endpoint}/") else {}  # the token is sent to its own Hub only
        response = get_session().get(url, headers=headers, timeout=_timeout(), follow_redirects=True)
        hf_raise_for_status(response)
        files += [RepoFile(**entry) for entry in response.json() if entry["type"] == "file"]
        url = _next_page(str(response.url), response.links.values())
    return files


def _next_page(url: str, links: Iterable[Mapping[str, str]]) -> str | None:
    """The URL of the next page (RFC 8288), resolved against that of this one; None for the last page."""
    following = (link for link in links if "next" in link.get("rel", "").lower().split())
    return next((urljoin(url, link["url"]) for link in following), None)


def _file(asked: Asked, commit: str, entry: RepoFile) -> HubFile:
    checksum = Checksum(SHA256, entry.lfs.sha256) if entry.lfs else Checksum(GIT_SHA1, entry.blob_id)
    size = entry.lfs.size if entry.lfs else entry.size
    if not isinstance(size, int) or size < 0 or not _HASH.fullmatch(str(checksum.value)):
        raise _no_hub(asked)
    is_in_xet = getattr(entry, "xet_hash", None) is not None  # huggingface_hub 1.0 lacks it
    needs_library = is_in_xet and (entry.lfs is None or size > constants.MAX_HTTP_DOWNLOAD_SIZE)
    return HubFile(asked, commit, entry.path, size, checksum, needs_library)


def _no_hub(asked: Asked) -> CorruptError:
    return CorruptError(
        f"{asked.endpoint}: does not respond like a Hugging Face Hub.", "Check HF_ENDPOINT, proxy and firewall."
    )


def _answered(asked: Asked, call: Callable[[], T]) -> T:
    """The result of a call; raises if the response does not have the form of a Hub's."""
    try:
        with _faults_named(asked, asked.repo):
            return call()
    except HFValidationError:
        raise UsageError(f"{asked.repo!r} is not a valid repository name.", "Write org/name.") from None
    except (KeyError, TypeError, ValueError):  # a response of another form
        raise _no_hub(asked) from None


@contextlib.contextmanager
def _faults_named(asked: Asked, what: str) -> Iterator[None]:
    """Turn what huggingface_hub and its HTTP library raise into TransientError or one of our errors.

    Theirs are cut off from ours: a header that could not be sent may stand in them, with the token.
    """
    try:
        yield
    except HfHubHTTPError as error:
        raise explained(error, asked, what) from None
    except HTTP_ERROR as error:
        raise fault_of(error, asked) from None
    except OfflineModeIsEnabled:
        raise NetworkError(
            "HF_HUB_OFFLINE is set, which blocks all requests.", "Unset HF_HUB_OFFLINE and run the command again."
        ) from None


class _Response(Protocol):
    """The part of a response's interface that is used; both HTTP libraries have it."""

    status_code: int

    @property
    def headers(self) -> Mapping[str, str]: ...

    def iter_bytes(self) -> Iterator[bytes]: ...


class _HttpBody:
    """The body of a response, as the transfer reads it."""

    def __init__(
        self, response: _Response, faults_named: Callable[[], contextlib.AbstractContextManager[None]]
    ) -> None:
        self._response = response
        self._faults_named = faults_named
        self.start, self.size = _extent(response)

    @property
    def validator(self) -> str | None:
        etag = self._response.headers.get("etag")
        return None if etag is None or etag.startswith("W/") else str(etag)

    def chunks(self) -> Iterator[bytes]:
        with self._faults_named():
            yield from self._response.iter_bytes()


def _extent(response: _Response) -> tuple[int, int | None]:
    """The offset at which a body begins, and the size of the whole file, in bytes."""
    if response.status_code == 206:
        match = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
        if match is None:
            raise TransientError("the server sent a partial response without a Content-Range")
        return int(match[1]), None if match[2] == "*" else int(match[2])
    length = response.headers.get("content-length", "")
    is_plain = response.headers.get("content-encoding", "identity") == "identity"
    return 0, int(length) if length.isdigit() and is_plain else None


def _headers() -> dict[str, str]:
    return build_hf_headers(library_name="gptfast", library_version=__version__)


def _timeout() -> float:
    """Seconds without a byte after which a connection counts as stalled."""
    return float(os.environ.get("HF_HUB_DOWNLOAD_TIMEOUT") or constants.HF_HUB_DOWNLOAD_TIMEOUT)
