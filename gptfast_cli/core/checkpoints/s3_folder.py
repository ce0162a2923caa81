"""Where a model from S3 is kept: `$GPTFAST_HOME/downloads/s3/<bucket>/<prefix>`, the files as the bucket has them.

A prefix may be almost any text (https://docs.aws.amazon.com/AmazonS3/latest/userguide/object-keys.html). Each part
between slashes becomes the name of a folder in which characters that are not safe on every system are %XX, so that no
two prefixes share a folder and none leads out of its bucket's.
"""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from gptfast_cli.core.download_notes import NOTES, sources_noted

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
    """`s3://bucket/prefix`, taken apart; the prefix is that of keys, with its last slash, or empty for the bucket."""

    bucket: str
    prefix: str

    def __str__(self) -> str:
        text = f"{S3}{self.bucket}/{self.prefix}"
        return text if text.endswith("//") else text.removesuffix("/")

    def folder(self, home: Path) -> Path:
        """Where what it holds is kept."""
        parts = self.prefix.split("/")[:-1]
        return home.joinpath("downloads", "s3", self.bucket, *map(_folder_name, parts))


def parse_bucket_path(text: str) -> BucketPath | None:
    """The bucket and prefix that a text names, with or without a slash at its end; None where S3 can have none such."""
    bucket, _, prefix = text.removeprefix(S3).partition("/")
    if not text.startswith(S3) or not _BUCKET.fullmatch(bucket) or not _is_prefix(prefix):
        return None
    return BucketPath(bucket, prefix if prefix.endswith("/") or not prefix else f"{prefix}/")


def find_bucket_path(home: Path, text: str) -> Path | None:
    """The folder of `s3://bucket/prefix`; None where it was not downloaded."""
    path = parse_bucket_path(text)
    if path is None:
        return None
    folder = path.folder(home)
    sources = sources_noted(folder)
    # some file systems take `A` for `a`, and a file of a shorter prefix may have such a name
    return folder if sources is not None and sources <= {str(path)} else None


def bucket_paths(home: Path) -> Iterator[tuple[BucketPath, Path]]:
    """All that was downloaded from S3, and where it is."""
    for notes in sorted((home / "downloads" / "s3").rglob(NOTES)):
        folder = notes.parents[len(Path(NOTES).parts) - 1]
        for source in sorted(sources_noted(folder) or ()):
            path = parse_bucket_path(source)
            if path is not None and path.folder(home) == folder:
                yield path, folder


def _is_prefix(text: str) -> bool:
    """Whether keys can begin so; one that climbs above its bucket cannot, and a name has to fit on a line."""
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
