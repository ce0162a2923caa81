"""A file's checksum covers every byte of it, in whatever pieces it is read and its source keeps it."""

import hashlib
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gptfast_cli.core.digest import CRC32, GIT_SHA1, MD5, SHA1, SHA256, Checksum

PIECE = 1 << 20  # bytes that are read at once
N_BYTES = 2 * PIECE + 13
CONTENT = np.arange(N_BYTES // 4 + 1, dtype=np.uint32).tobytes()[:N_BYTES]  # no two pieces are equal


def of_parts(content: bytes, part_bytes: int) -> str:
    parts = [content[start : start + part_bytes] for start in range(0, len(content), part_bytes)]
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()


CHECKSUMS: dict[str, Callable[[bytes], Checksum]] = {
    "sha256": lambda content: Checksum(SHA256, hashlib.sha256(content).hexdigest()),
    "sha1": lambda content: Checksum(SHA1, hashlib.sha1(content).hexdigest()),
    "git's": lambda content: Checksum(GIT_SHA1, hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()),
    "md5": lambda content: Checksum(MD5, hashlib.md5(content).hexdigest()),
    "crc32": lambda content: Checksum(CRC32, f"{zlib.crc32(content):08x}"),
    "small parts": lambda content: Checksum(SHA256, of_parts(content, 300_007), 300_007),
    "large parts": lambda content: Checksum(SHA256, of_parts(content, 1_500_000), 1_500_000),
}


@pytest.mark.parametrize("kind", CHECKSUMS)
def test_a_change_of_any_byte_of_a_file_is_noticed(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "file"
    checksum = CHECKSUMS[kind](CONTENT)
    file.write_bytes(CONTENT)
    assert checksum.is_of_file(file)
    for position in (0, PIECE - 1, PIECE, 2 * PIECE + 1, N_BYTES - 1):
        changed = bytearray(CONTENT)
        changed[position] ^= 1
        file.write_bytes(changed)
        assert not checksum.is_of_file(file), position
    file.write_bytes(CONTENT[:-1])
    assert not checksum.is_of_file(file)


@pytest.mark.parametrize("kind", CHECKSUMS)
@pytest.mark.parametrize("content", [b"", CONTENT[:PIECE], CONTENT[: 2 * PIECE]], ids=["none", "a piece", "two"])
def test_a_file_may_end_with_a_piece(tmp_path: Path, kind: str, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    assert CHECKSUMS[kind](content).is_of_file(tmp_path / "file")
