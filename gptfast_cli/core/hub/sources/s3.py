"""S3 buckets as a source: listings, objects, and errors translated to ours.

Nothing of what boto3 says is passed on: its messages may carry keys and signed addresses.

Credentials, region and endpoint are where every AWS tool has them; without credentials it is asked as nobody, which a
public bucket answers.

A part of an object is asked for with `If-Match`, so that it is of the version that was listed. What it is verified by
is the strongest checksum that S3 keeps of it, or its ETag where that is an MD5: of the whole, or for an object that
came in parts the MD5 of their MD5s
(https://docs.aws.amazon.com/AmazonS3/latest/userguide/checking-object-integrity.html).
"""

import base64
import contextlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Final

import boto3
import botocore
from botocore import exceptions as aws
from botocore.config import Config

from gptfast_cli.core.digest import CRC32, CRC32C, CRC64NVME, MD5, SHA1, SHA256, Checksum, can_compute
from gptfast_cli.core.errors import GptFastError, NetworkError, NotAuthorizedError, NotFoundError, UsageError
from gptfast_cli.core.hub.remote import Body, TransientError, UnreachableError, WrongBytesError

_ADDRESS: Final = "AWS_ENDPOINT_URL"
_SIGN_IN: Final = "Set AWS_PROFILE, or check which identity is in use: aws sts get-caller-identity"

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
"""Variables that boto3 parses as integers; it raises ValueError or worse for other values."""
_BAD_CREDENTIALS: Final = frozenset(
    {"ExpiredToken", "InvalidAccessKeyId", "InvalidToken", "RequestExpired", "SignatureDoesNotMatch"}
)


def check_aws_environment(environment: Mapping[str, str] = os.environ) -> None:
    """Raise UsageError for an AWS variable that is not a positive integer; call it before boto3 reads them."""
    for name in _NUMBERS:
        value = environment.get(name)
        if value and not (value.isascii() and value.isdecimal() and len(value) < 9 and int(value) > 0):
            raise UsageError(
                f"The environment variable {name} must be a whole number above 0, not {value!r}.", f"unset {name}"
            )


@contextlib.contextmanager
def faults_named(where: str) -> Iterator[None]:
    """Turn what boto3 raises into TransientError or another of our errors; `where` is an s3:// name."""
    try:
        yield
    except aws.ClientError as error:
        raise _explained(error, where) from None
    except (aws.BotoCoreError, aws.HTTPClientError, OSError) as error:
        raise _fault_of(error, where) from None


def mistaken_settings() -> UsageError:
    """The error for an unknown profile, region, mode or endpoint."""
    return UsageError(
        "The AWS settings name a profile, region, mode or endpoint that does not exist.",
        f"Check AWS_PROFILE, AWS_DEFAULT_REGION, AWS_RETRY_MODE, AWS_DEFAULTS_MODE, {_ADDRESS} and ~/.aws/config.",
    )


def _fault_of(error: Exception, where: str) -> TransientError | GptFastError:
    """The error for a failure without a response of a server."""
    if isinstance(error, _UNREACHABLE):
        return UnreachableError("no connection", _ADDRESS)
    if isinstance(error, aws.ReadTimeoutError):
        return TransientError("the server stopped responding")
    if isinstance(error, _BROKEN_OFF):
        return TransientError("the connection was lost")
    if isinstance(error, _MISTAKEN):
        return mistaken_settings()
    # what is left is about credentials: logins that have expired, helpers that fail
    return NotAuthorizedError(f"{where}: the AWS credentials cannot be used.", _SIGN_IN)


def _explained(error: aws.ClientError, where: str) -> TransientError | WrongBytesError | GptFastError:
    """The error for a response of a server."""
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    code = str(error.response.get("Error", {}).get("Code", ""))
    if status in _PASSING:
        return TransientError(_busy(status), wait_seconds=_asked_wait(error))
    if status == 416:  # the partial file is longer than the remote one
        return WrongBytesError("the file on the server is shorter than listed")
    if status == 412:
        return NetworkError(f"{where}: was replaced during the download.", "Run the same command again.")
    if status == 404:
        return _not_found(code, where)
    if status in (401, 403) or code in _BAD_CREDENTIALS:
        return _not_allowed(code, where)
    return NetworkError(f"{where}: the server returned HTTP {status}.", "Check AWS_DEFAULT_REGION, or try again later.")


def _not_allowed(code: str, where: str) -> GptFastError:
    if code == "InvalidObjectState":
        return NotFoundError(
            f"{where}: is in an archive storage class, and must be restored before it can be read.",
            "Restore it: aws s3api restore-object",
        )
    if code in _BAD_CREDENTIALS:
        return NotAuthorizedError(f"{where}: the AWS credentials were rejected ({code}).", _SIGN_IN)
    return NotAuthorizedError(
        f"{where}: access denied (403).",
        f"{_SIGN_IN}\nRequired permissions: s3:ListBucket on the bucket, s3:GetObject on its objects.",
    )


def _not_found(code: str, where: str) -> GptFastError:
    if code == "NoSuchBucket":
        return NotFoundError(f"{where}: the bucket does not exist.", f"Check its name and {_ADDRESS}.")
    return NotFoundError(f"{where}: no longer exists.", "Run the same command again: it lists the files again.")


def _busy(status: int) -> str:
    return f"rate-limited by the server ({status})" if status in (429, 503) else f"server error ({status})"


def _asked_wait(error: aws.ClientError) -> float | None:
    seconds = str(error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("retry-after", ""))
    return float(seconds) if seconds.isdigit() else None


_CHECKSUMS: Final = {
    "ChecksumSHA256": SHA256,
    "ChecksumSHA1": SHA1,
    "ChecksumCRC64NVME": CRC64NVME,
    "ChecksumCRC32C": CRC32C,
    "ChecksumCRC32": CRC32,
}
"""S3's names of checksum algorithms, the strongest first."""

_MD5: Final = re.compile(r'"([0-9a-f]{32})(?:-(\d+))?"')
_CONTENT_RANGE: Final = re.compile(r"bytes (\d+)-\d+/(\d+)")
_CHUNK_BYTES = 1 << 18


@dataclass(frozen=True, slots=True)
class Bucket:
    """The objects below a prefix of a bucket; `prefix` ends with a slash, or is empty."""

    client: Any
    name: str
    prefix: str

    def __str__(self) -> str:
        return f"s3://{self.name}/{self.prefix}"


@dataclass(frozen=True, slots=True)
class S3File:
    """One object, as it was listed."""

    bucket: Bucket
    name: str
    size: int
    etag: str
    checksum: Checksum | None = None

    @property
    def version(self) -> str:
        return self.etag.strip('"')

    @property
    def request(self) -> dict[str, str]:
        """The parameters that identify the object to S3."""
        return {"Bucket": self.bucket.name, "Key": self.bucket.prefix + self.name}

    @contextlib.contextmanager
    def open(self, start: int, validator: str | None) -> Iterator[Body]:
        """Open the object; S3 refuses one that was replaced since it was listed, even by the same bytes."""
        part = {"Range": f"bytes={start}-"} if start and validator in (None, self.etag) else {}
        with faults_named(str(self)):
            answer = self.bucket.client.get_object(**self.request, IfMatch=self.etag, **part)
        with contextlib.closing(answer["Body"]):
            yield _Body(answer, str(self))

    def described(self) -> "S3File":
        """The same object with its checksum, if S3 has one."""
        client = self.bucket.client
        with faults_named(str(self)):
            response = client.head_object(**self.request, ChecksumMode="ENABLED")
            value, n_parts = _offered(response)
            if value is None or n_parts is None:
                return replace(self, checksum=value)
            part_bytes = client.head_object(**self.request, PartNumber=1)["ContentLength"]
        is_regular = part_bytes and -(-self.size // part_bytes) == n_parts
        return replace(self, checksum=replace(value, part_bytes=part_bytes) if is_regular else None)

    def __str__(self) -> str:
        return f"s3://{self.bucket.name}/{self.bucket.prefix}{self.name}"


def open_bucket(name: str, prefix: str, *, stall_seconds: float) -> Bucket:
    """Open a bucket; raises UsageError and NotAuthorizedError for invalid AWS settings.

    stall_seconds: without a byte, after which a connection counts as stalled
    """
    options = Config(
        connect_timeout=stall_seconds,
        read_timeout=stall_seconds,
        retries={"total_max_attempts": 1},  # retries are decided here
        response_checksum_validation="when_required",
        max_pool_connections=64,
    )
    check_aws_environment()
    with faults_named(f"s3://{name}"):
        try:
            session = boto3.session.Session()
            if session.get_credentials() is None:
                options = options.merge(Config(signature_version=botocore.UNSIGNED))
            client = session.client("s3", region_name=session.region_name or "us-east-1", config=options)
        except ValueError:  # of a variable, or of a line in ~/.aws/config
            raise mistaken_settings() from None
    return Bucket(client, name, prefix)


def list_bucket(bucket: Bucket, *, max_files: int = 10_000) -> list[S3File]:
    """The objects below the prefix, without their checksums.

    Raises NotFoundError if there are none, UsageError for more than `max_files`: they are not one model's.
    """
    with faults_named(str(bucket)):
        pages = bucket.client.get_paginator("list_objects_v2").paginate(Bucket=bucket.name, Prefix=bucket.prefix)
        entries = list(islice((entry for page in pages for entry in page.get("Contents", ())), max_files + 1))
    if len(entries) > max_files:
        raise UsageError(
            f"{bucket}: has more than {max_files:,} files under this prefix.", "Name the prefix of one model."
        )
    files = [
        S3File(bucket, entry["Key"].removeprefix(bucket.prefix), entry["Size"], entry["ETag"])
        for entry in entries
        if not entry["Key"].endswith("/")  # which consoles make for folders
    ]
    if not files:
        raise NotFoundError(f"{bucket}: no files under this prefix.", f"List the bucket: aws s3 ls s3://{bucket.name}/")
    return files


def described(files: Sequence[S3File], n_workers: int) -> list[S3File]:
    """The files with their checksums; a request or two for each."""
    with ThreadPoolExecutor(n_workers) as pool:
        return list(pool.map(S3File.described, files))


class _Body:
    """The body of a response, as the transfer reads it."""

    def __init__(self, answer: Mapping[str, Any], where: str) -> None:
        self._where = where
        self._stream = answer["Body"]
        self.validator: str | None = answer["ETag"]
        match = _CONTENT_RANGE.fullmatch(answer.get("ContentRange", ""))
        self.start = int(match[1]) if match else 0
        self.size: int | None = int(match[2]) if match else answer["ContentLength"]

    def chunks(self) -> Iterator[bytes]:
        with faults_named(self._where):
            yield from self._stream.iter_chunks(_CHUNK_BYTES)


def _offered(response: Mapping[str, Any]) -> tuple[Checksum | None, int | None]:
    """The strongest checksum in S3's attributes of an object, with the number of parts if it combines theirs."""
    for name, algorithm in _CHECKSUMS.items():
        if name in response and can_compute(algorithm):
            value, _, n_parts = response[name].partition("-")
            return Checksum(algorithm, base64.b64decode(value).hex()), int(n_parts) if n_parts else None
    match = _MD5.fullmatch(response["ETag"])
    is_md5 = response.get("ServerSideEncryption", "AES256") == "AES256" and "SSECustomerAlgorithm" not in response
    if match is None or not is_md5:
        return None, None
    return Checksum(MD5, match[1]), int(match[2]) if match[2] else None
