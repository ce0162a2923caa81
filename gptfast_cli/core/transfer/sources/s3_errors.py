"""What S3 refuses, in words that end with the next command; a fault that may pass becomes PassingError.

Nothing of what boto3 says is passed on: its messages may carry keys and signed addresses.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import Final

from botocore import exceptions as aws

from gptfast_cli.core.errors import GptFastError, NetworkError, NotAuthorisedError, NotFoundError, UsageError
from gptfast_cli.core.transfer.remote import PassingError, UnreachableError, WrongBytesError

_ADDRESS: Final = "AWS_ENDPOINT_URL"
_SIGN_IN: Final = "Set AWS_PROFILE, or see who you are there: aws sts get-caller-identity"

_PASSING: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
_UNREACHABLE: Final = (
    aws.ConnectTimeoutError,
    aws.EndpointConnectionError,
    aws.ProxyConnectionError,
    aws.SSLError,
)
_BROKEN_OFF: Final = (aws.HTTPClientError, aws.ResponseStreamingError, aws.IncompleteReadError, OSError)
_MISTAKEN: Final = (
    aws.ProfileNotFound,
    aws.ConfigNotFound,
    aws.ConfigParseError,
    aws.InvalidRegionError,
    aws.InvalidRetryModeError,
    aws.InvalidDefaultsMode,
)
_NUMBERS: Final = (
    "AWS_METADATA_SERVICE_TIMEOUT",
    "AWS_METADATA_SERVICE_NUM_ATTEMPTS",
    "AWS_CSM_PORT",
)
"""Variables that boto3 reads as whole numbers, and ends in a ValueError or worse where they are none."""
_BAD_CREDENTIALS: Final = frozenset(
    {"ExpiredToken", "InvalidAccessKeyId", "InvalidToken", "RequestExpired", "SignatureDoesNotMatch"}
)


def check_aws_environment(environment: Mapping[str, str] = os.environ) -> None:
    """Raise UsageError for a variable of AWS that should be a whole number above 0; to be called before boto3 reads."""
    for name in _NUMBERS:
        value = environment.get(name)
        if value and not (value.isascii() and value.isdecimal() and len(value) < 9 and int(value) > 0):
            raise UsageError(
                f"The environment variable {name} must be a whole number above 0, not {value!r}.", f"unset {name}"
            )


@contextlib.contextmanager
def faults_named(where: str) -> Iterator[None]:
    """Turn what boto3 raises into PassingError or one of our errors, cut off from theirs; `where` is an s3:// name."""
    try:
        yield
    except aws.ClientError as error:
        raise _explained(error, where) from None
    except (aws.BotoCoreError, aws.HTTPClientError, OSError) as error:
        raise _fault_of(error, where) from None


def mistaken_settings() -> UsageError:
    """The error for a profile, a region, a mode or an address that there is not."""
    return UsageError(
        "The settings for AWS name what there is not.",
        f"Check AWS_PROFILE, AWS_DEFAULT_REGION, AWS_RETRY_MODE, AWS_DEFAULTS_MODE, {_ADDRESS} and ~/.aws/config.",
    )


def _fault_of(error: Exception, where: str) -> PassingError | GptFastError:
    """An error that no server has answered with."""
    if isinstance(error, _UNREACHABLE):
        return UnreachableError("no connection", _ADDRESS)
    if isinstance(error, aws.ReadTimeoutError):
        return PassingError("the server has fallen silent")
    if isinstance(error, _BROKEN_OFF):
        return PassingError("the connection broke off")
    if isinstance(error, _MISTAKEN):
        return mistaken_settings()
    # what is left is about credentials: logins that have expired, helpers that fail
    return NotAuthorisedError(f"{where}: the credentials for AWS cannot be used.", _SIGN_IN)


def _explained(error: aws.ClientError, where: str) -> PassingError | WrongBytesError | GptFastError:
    """What a server has answered."""
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    code = str(error.response.get("Error", {}).get("Code", ""))
    if status in _PASSING:
        return PassingError(_busy(status), wait_seconds=_asked_wait(error))
    if status == 416:  # our beginning is longer than what is there
        return WrongBytesError("the server has fewer bytes than it lists")
    if status == 412:
        return NetworkError(f"{where}: was replaced while it was being fetched.", "Give the same command again.")
    if status == 404:
        return _not_found(code, where)
    if status in (401, 403) or code in _BAD_CREDENTIALS:
        return _not_allowed(code, where)
    return NetworkError(f"{where}: the server answers {status}.", "Check AWS_DEFAULT_REGION, or try again later.")


def _not_allowed(code: str, where: str) -> GptFastError:
    if code == "InvalidObjectState":
        return NotFoundError(
            f"{where}: is in an archive class of storage, and cannot be read before it is restored.",
            "Restore it: aws s3api restore-object",
        )
    if code in _BAD_CREDENTIALS:
        return NotAuthorisedError(f"{where}: the credentials for AWS are not accepted ({code}).", _SIGN_IN)
    return NotAuthorisedError(
        f"{where}: is not allowed to who you are there (403).",
        f"{_SIGN_IN}\nIt takes s3:ListBucket for the bucket, and s3:GetObject for what is in it.",
    )


def _not_found(code: str, where: str) -> GptFastError:
    if code == "NoSuchBucket":
        return NotFoundError(f"{where}: there is no such bucket.", f"Check its name and {_ADDRESS}.")
    return NotFoundError(f"{where}: is gone.", "Give the same command again, and what is there is listed anew.")


def _busy(status: int) -> str:
    return f"the server asks for patience ({status})" if status in (429, 503) else f"the server has a fault ({status})"


def _asked_wait(error: aws.ClientError) -> float | None:
    seconds = str(error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("retry-after", ""))
    return float(seconds) if seconds.isdigit() else None
