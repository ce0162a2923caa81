"""Checksums that sources offer for a file: what is computed while its bytes arrive, and must come out."""

import hashlib
import importlib
import importlib.util
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

SHA256: Final = "sha256"
SHA1: Final = "sha1"
GIT_SHA1: Final = "git-sha1"
"""The SHA-1 of a git blob: of `blob <size>`, a zero byte, and the contents."""
MD5: Final = "md5"
CRC64NVME: Final = "crc64nvme"
CRC32C: Final = "crc32c"
CRC32: Final = "crc32"

_CHUNK_BYTES = 1 << 20
_CRC_BYTES: Final = {CRC64NVME: 8, CRC32C: 4, CRC32: 4}


class Digest(Protocol):
    """A hash that is being computed."""

    def update(self, data: bytes, /) -> None:
        """Add bytes."""
        ...

    def digest(self) -> bytes:
        """The hash of all bytes so far."""
        ...


@dataclass(frozen=True, slots=True)
class Checksum:
    """What a file's contents hash to.

    value:      in hexadecimal
    part_bytes: where it is the hash of the hashes of the file's parts, their size, that of the last one excepted
    """

    algorithm: str
    value: str
    part_bytes: int | None = None

    def begin(self, size: int) -> Digest:
        """The computation of it, for a file of so many bytes."""
        if self.part_bytes is not None:
            return _DigestOfParts(lambda: _new_digest(self.algorithm, size), self.part_bytes)
        return _new_digest(self.algorithm, size)

    def is_of(self, digest: Digest) -> bool:
        """Whether that came out."""
        return digest.digest().hex() == self.value

    def is_of_file(self, path: Path) -> bool:
        """Whether a file here has this checksum."""
        digest = self.begin(path.stat().st_size)
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
        return self.is_of(digest)


def can_compute(algorithm: str) -> bool:
    """Whether this machine can: two of the cyclic ones need AWS's own library, which comes with the extra `s3`."""
    return algorithm not in (CRC64NVME, CRC32C) or importlib.util.find_spec("awscrt") is not None


def _new_digest(algorithm: str, size: int) -> Digest:
    if algorithm in _CRC_BYTES:
        return _Cyclic(_cyclic(algorithm), _CRC_BYTES[algorithm])
    if algorithm == GIT_SHA1:
        return hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)  # git's own, and all that is offered
    return hashlib.new(algorithm, usedforsecurity=algorithm == SHA256)


def _cyclic(algorithm: str) -> Callable[[bytes, int], int]:
    if algorithm == CRC32:
        return zlib.crc32
    function: Callable[[bytes, int], int] = getattr(importlib.import_module("awscrt.checksums"), algorithm)
    return function


class _Cyclic:
    """See Digest; a cyclic redundancy check, most significant byte first."""

    def __init__(self, function: Callable[[bytes, int], int], n_bytes: int) -> None:
        self._function, self._n_bytes = function, n_bytes
        self._value = 0

    def update(self, data: bytes, /) -> None:
        self._value = self._function(data, self._value)

    def digest(self) -> bytes:
        return self._value.to_bytes(self._n_bytes, "big")


class _DigestOfParts:
    """See Digest; the hash of the hashes of parts."""

    def __init__(self, new: Callable[[], Digest], part_bytes: int) -> None:
        self._new, self._part_bytes = new, part_bytes
        self._whole, self._part = new(), new()
        self._missing = part_bytes  # of the part under way

    def update(self, data: bytes, /) -> None:
        rest = memoryview(data)
        while rest:
            here, rest = rest[: self._missing], rest[self._missing :]
            self._part.update(bytes(here))
            self._missing -= len(here)
            if self._missing == 0:
                self._end_part()

    def digest(self) -> bytes:
        """See Digest; ends the last part."""
        if self._missing < self._part_bytes:
            self._end_part()
        return self._whole.digest()

    def _end_part(self) -> None:
        self._whole.update(self._part.digest())
        self._part, self._missing = self._new(), self._part_bytes
