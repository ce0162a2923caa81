"""Where a model from S3 is kept: `$GPTFAST_HOME/downloads/s3/<bucket>/<prefix>`, the files as the bucket has them."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

S3: Final = "s3://"

_BUCKET: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,62}")
_PART: Final = re.compile(r"[\w+=@(),'!~][\w .+=@(),'!~-]*")


@dataclass(frozen=True, slots=True)
class BucketPath:
    """`s3://bucket/prefix`, taken apart; the prefix has no slash at its ends, and is empty for the whole bucket."""

    bucket: str
    prefix: str

    def __str__(self) -> str:
        return f"{S3}{self.bucket}/{self.prefix}".rstrip("/")

    def folder(self, home: Path) -> Path:
        """Where what it holds is kept."""
        return home / "downloads" / "s3" / self.bucket / self.prefix


def parse_bucket_path(text: str) -> BucketPath | None:
    """The bucket and prefix that a text names; None where it is not of that form, or its prefix is no safe path."""
    if not text.startswith(S3):
        return None
    bucket, _, prefix = text.removeprefix(S3).partition("/")
    parts = prefix.strip("/").split("/") if prefix.strip("/") else []
    if not _BUCKET.fullmatch(bucket) or not all(_PART.fullmatch(part) and part[-1] not in ". " for part in parts):
        return None
    return BucketPath(bucket, "/".join(parts))


def find_bucket_path(home: Path, text: str) -> Path | None:
    """The folder of `s3://bucket/prefix`; None where it was not downloaded."""
    path = parse_bucket_path(text)
    folder = path.folder(home) if path else None
    return folder if folder and folder.is_dir() else None
