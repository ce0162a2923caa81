"""What the Hub refuses, in words that end with the next command; a fault that may pass becomes PassingError.

Nothing of what the libraries say is passed on but a reason in a few words: their messages carry addresses that are
signed, and headers.
"""

import re
from dataclasses import dataclass
from typing import Final, cast

from huggingface_hub import get_token
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RevisionNotFoundError

from gptfast_cli.core.errors import GptFastError, NetworkError, NotAuthorisedError, NotFoundError
from gptfast_cli.core.transfer.remote import PassingError, UnreachableError

HTTP_ERROR: Final = cast("type[Exception]", HfHubHTTPError.__bases__[0])
"""The base of what the HTTP library raises: huggingface_hub 1 builds on httpx, 2 on httpx2."""

_PASSING: Final = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529})
_RESET: Final = re.compile(r"\bt=(\d+)")  # RateLimit: "resolvers";r=0;t=55
_ADDRESS: Final = "HF_ENDPOINT"
_LOG_IN: Final = "hf auth login (or set HF_TOKEN)"


@dataclass(frozen=True, slots=True)
class Asked:
    """What is being asked of which Hub."""

    endpoint: str
    repo: str
    revision: str

    @property
    def page(self) -> str:
        """Where a person finds the repository."""
        return f"{self.endpoint}/{self.repo}"

    def check_token(self) -> None:
        """Raise NotAuthorisedError for a token that cannot be sent; a library's own complaint would show it."""
        token = get_token()
        if token is not None and not (token.isascii() and token.isprintable() and " " not in token):
            raise NotAuthorisedError(
                "The token for the Hub has characters that no token has.", f"Log in anew: {_LOG_IN}"
            )


def explained(error: HfHubHTTPError, asked: Asked, what: str) -> GptFastError | PassingError:
    """A refusal of the Hub as one of ours; `what` is the file or the repository."""
    status, headers = error.response.status_code, error.response.headers
    if status in _PASSING:
        asked_wait = _asked_wait(headers.get("retry-after"), headers.get("ratelimit"))
        return PassingError(_busy(status), wait_seconds=asked_wait)
    if isinstance(error, GatedRepoError):
        return _gated(asked)
    if status in (401, 403):
        return _not_allowed(asked, status, what)
    if status in (404, 410):
        return _not_found(asked, what, no_revision=isinstance(error, RevisionNotFoundError))
    return NetworkError(f"{what}: the server answers {status}.", "Try again later.")


def fault_of(error: Exception, asked: Asked) -> PassingError | GptFastError:
    """An error of the HTTP library in a few words."""
    kind = type(error).__name__
    if kind in ("UnsupportedProtocol", "LocalProtocolError", "TooManyRedirects"):
        return NetworkError(f"{asked.endpoint}: cannot be asked ({kind}).", "Check HF_ENDPOINT and the proxy settings.")
    if kind.endswith("Timeout"):
        is_there = kind == "ReadTimeout"
        return (
            PassingError("the server has fallen silent")
            if is_there
            else UnreachableError("the server does not answer", _ADDRESS)
        )
    if kind in ("RemoteProtocolError", "ReadError", "DecodingError"):
        return PassingError("the connection broke off")
    if kind == "ConnectError":
        return UnreachableError(f"no connection ({str(error) or 'refused'})", _ADDRESS)
    return PassingError(f"the request failed ({kind})")


def _gated(asked: Asked) -> NotAuthorisedError:
    if get_token() is None:
        return NotAuthorisedError(
            f"{asked.repo}: is gated: its owner gives access on request, and you are not logged in.",
            f"Ask for access on {asked.page}\nThen log in: {_LOG_IN}",
        )
    return NotAuthorisedError(
        f"{asked.repo}: is gated, and this account has no access, or its token may not use it.",
        f"Ask for access on {asked.page}\nWith access, log in with a token that may read gated repositories: {_LOG_IN}",
    )


def _not_allowed(asked: Asked, status: int, what: str) -> NotAuthorisedError:
    if status == 403:
        return NotAuthorisedError(
            f"{what}: the Hub does not allow it to this account (403).", f"See {asked.page}, or log in: {_LOG_IN}"
        )
    if get_token() is not None:
        return NotAuthorisedError(f"{asked.repo}: the Hub does not accept this token.", f"Log in anew: {_LOG_IN}")
    return NotAuthorisedError(
        f"{asked.repo}: the Hub shows it to nobody who is not logged in: it is private, or there is none.",
        f"Check the name, or log in: {_LOG_IN}",
    )


def _not_found(asked: Asked, what: str, *, no_revision: bool) -> NotFoundError:
    if no_revision:
        return NotFoundError(
            f"{asked.repo}: has no revision {asked.revision}.", f"See which there are: {asked.page}/tree/main"
        )
    if what == asked.repo:
        return NotFoundError(
            f"{asked.repo}: the Hub has no model of this name, or shows it to its members only.",
            f"Check the name; for a private one log in: {_LOG_IN}",
        )
    return NotFoundError(f"{what}: is gone from {asked.repo}.", f"See what it holds: {asked.page}/tree/main")


def _busy(status: int) -> str:
    return "the server asks for patience (429)" if status == 429 else f"the server has a fault ({status})"


def _asked_wait(retry_after: str | None, rate_limit: str | None) -> float | None:
    """Seconds that the server asks to be left alone; a date in Retry-After is passed over."""
    if retry_after is not None and retry_after.strip().isdigit():
        return float(retry_after)
    match = _RESET.search(rate_limit or "")
    return float(match[1]) if match else None
