"""SHA-256 of files and of stretches of them, read piece by piece."""

import hashlib
from pathlib import Path

_CHUNK_BYTES = 1 << 24


def sha256_of(path: Path, start: int = 0, end: int | None = None) -> str:
    """The SHA-256 in hexadecimal of the bytes of a file from `start` to `end`, or to its own."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        left = (path.stat().st_size if end is None else end) - file.seek(start)
        while left > 0 and (chunk := file.read(min(_CHUNK_BYTES, left))):
            digest.update(chunk)
            left -= len(chunk)
    return digest.hexdigest()
