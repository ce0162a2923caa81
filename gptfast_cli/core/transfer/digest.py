"""Hashes that sources offer for a file, and which of them is trusted most."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Protocol

SHA256: Final = "sha256"
GIT_SHA1: Final = "git-sha1"
"""The SHA-1 of a git blob: of `blob <size>`, a zero byte, and the contents."""

_STRONGEST_FIRST: Final = (SHA256, GIT_SHA1)
_CHUNK_BYTES = 1 << 20


class Digest(Protocol):
    """A hash that is being computed."""

    def update(self, data: bytes, /) -> None:
        """Add bytes."""
        ...

    def hexdigest(self) -> str:
        """The hash of all bytes so far."""
        ...


def strongest(hashes: Mapping[str, str]) -> str | None:
    """The algorithm to verify a file by; None where no hash is known that we can compute."""
    return next((algorithm for algorithm in _STRONGEST_FIRST if algorithm in hashes), None)


def new_digest(algorithm: str, size: int) -> Digest:
    """A hash of nothing yet, for a file of so many bytes."""
    if algorithm == SHA256:
        return hashlib.sha256()
    assert algorithm == GIT_SHA1, algorithm
    return hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)  # git's own, and all that is offered


def file_has(path: Path, algorithm: str, expected: str) -> bool:
    """Whether a file here has that hash."""
    digest = new_digest(algorithm, path.stat().st_size)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest() == expected
