"""The engine with a source that is no Hub: it offers other checksums, or none."""

import hashlib
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from gptfast_cli.core.digest import CRC32, CRC32C, CRC64NVME, GIT_SHA1, MD5, SHA1, SHA256, Checksum
from gptfast_cli.core.errors import CorruptError, NetworkError
from gptfast_cli.core.hub.fetching import Fetched, fetch
from gptfast_cli.core.hub.remote import TransientError
from gptfast_cli.core.hub.target_paths import LocalLayout
from gptfast_cli.core.jobs.download import Downloaded, DownloadedFile
from gptfast_cli.render.checkpoints import write_downloaded
from hub.downloads import QUICK
from hub.fake_hub import git_sha1, sha256

CONTENT = bytes(range(256)) * 400


def crc(content: bytes, polynomial: int, n_bits: int) -> int:
    """A reflected cyclic redundancy check."""
    table = []
    for byte in range(256):
        entry = byte
        for _ in range(8):
            entry = entry >> 1 ^ (polynomial if entry & 1 else 0)
        table.append(entry)
    mask = (1 << n_bits) - 1
    register = mask
    for byte in content:
        register = register >> 8 ^ table[(register ^ byte) & 0xFF]
    return register ^ mask


@dataclass
class MemoryBody:
    """See Body; breaks off after `breaks_at` bytes of the file."""

    start: int
    size: int | None
    validator: str | None
    breaks_at: int | None

    def chunks(self) -> Iterator[bytes]:
        end = len(CONTENT) if self.breaks_at is None else self.breaks_at
        for at in range(self.start, end, 1000):
            yield CONTENT[at : min(at + 1000, end)]
        if self.breaks_at is not None:
            raise TransientError("it broke off")


@dataclass
class MemoryFile:
    """See RemoteFile; each opening breaks off where `breaks` says, and is noted in `starts`."""

    name: str = "a.bin"
    size: int = len(CONTENT)
    version: str = "1"
    checksum: Checksum | None = None
    etag: str | None = '"e"'
    breaks: list[int | None] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)

    @contextmanager
    def open(self, start: int, validator: str | None) -> Iterator[MemoryBody]:
        start = start if validator in (None, self.etag) else 0
        self.starts.append(start)
        yield MemoryBody(start, self.size, self.etag, self.breaks.pop(0) if self.breaks else None)


class Silence:
    """See Watch; nobody looks on."""

    def at(self, done: int) -> None: ...

    def note(self, text: str) -> None: ...

    def pause(self, seconds: float) -> None: ...


def fetched(file: MemoryFile, folder: Path) -> Fetched:
    return fetch(file, LocalLayout(folder, "a"), watch=Silence(), retry_policy=QUICK)


PARTS = [CONTENT[start : start + 30_000] for start in range(0, len(CONTENT), 30_000)]
CHECKSUMS = {
    "none": None,
    "sha256": Checksum(SHA256, sha256(CONTENT)),
    "sha1": Checksum(SHA1, hashlib.sha1(CONTENT).hexdigest()),
    "git's": Checksum(GIT_SHA1, git_sha1(CONTENT)),
    "md5": Checksum(MD5, hashlib.md5(CONTENT).hexdigest()),
    "crc32": Checksum(CRC32, f"{zlib.crc32(CONTENT):08x}"),
    "crc32c": Checksum(CRC32C, f"{crc(CONTENT, 0x82F63B78, 32):08x}"),
    "crc64": Checksum(CRC64NVME, f"{crc(CONTENT, 0x9A6C9329AC4BC9B5, 64):016x}"),
    "md5 of parts": Checksum(
        MD5, hashlib.md5(b"".join(hashlib.md5(part).digest() for part in PARTS)).hexdigest(), 30_000
    ),
}


@pytest.mark.parametrize("checksum", CHECKSUMS.values(), ids=CHECKSUMS)
def test_a_file_is_verified_by_the_checksum_offered(tmp_path: Path, checksum: Checksum | None) -> None:
    result = fetched(MemoryFile(checksum=checksum, breaks=[5000, None]), tmp_path)
    assert (result.verified_by, result.n_bytes) == (checksum and checksum.algorithm, len(CONTENT))
    assert (tmp_path / "a.bin").read_bytes() == CONTENT
    if checksum is not None:
        wrong = replace(checksum, value=f"{int(checksum.value, 16) ^ 1:0{len(checksum.value)}x}")
        with pytest.raises(CorruptError, match=rf"checksum mismatch \({checksum.algorithm}\)"):
            fetched(MemoryFile(name="b.bin", checksum=wrong), tmp_path)


def test_parts_may_end_with_the_file() -> None:
    content = CONTENT[:60_000]
    parts = b"".join(hashlib.md5(content[start : start + 30_000]).digest() for start in (0, 30_000))
    checksum = Checksum(MD5, hashlib.md5(parts).hexdigest(), 30_000)
    digest = checksum.begin(len(content))
    digest.update(content)
    assert checksum.is_of(digest) and checksum.is_of(digest)


@pytest.mark.parametrize(
    ("later", "starts"),
    [
        ({}, [40_000]),
        ({"etag": '"f"'}, [0]),
        ({"version": "2"}, [0]),
        ({"etag": None}, [0]),
    ],
)
def test_without_a_hash_a_beginning_counts_for_the_same_version_only(
    tmp_path: Path, later: dict[str, str | None], starts: list[int]
) -> None:
    with pytest.raises(NetworkError):
        fetched(MemoryFile(breaks=[40_000, 40_000, 40_000, 40_000]), tmp_path)
    file = MemoryFile(**later)  # type: ignore[arg-type]
    fetched(file, tmp_path)
    assert file.starts[:1] == starts
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


def test_what_nothing_can_tell_apart_is_begun_anew(tmp_path: Path) -> None:
    with pytest.raises(NetworkError):
        fetched(MemoryFile(etag=None, breaks=[40_000] * 4), tmp_path)
    file = MemoryFile(etag=None)
    fetched(file, tmp_path)
    assert file.starts == [0]


def test_what_could_not_be_verified_is_said(tmp_path: Path) -> None:
    shown = io.StringIO()
    files = (DownloadedFile("a.bin", 5, was_there=False), DownloadedFile("b.bin", 5, was_there=True))
    write_downloaded(Downloaded(tmp_path, "a", "1", files, free_bytes=10, n_received=5), shown)
    assert "NOT verified, as no hash is offered for them: a.bin\n" in shown.getvalue()
    assert "verified" not in shown.getvalue().splitlines()[0]
