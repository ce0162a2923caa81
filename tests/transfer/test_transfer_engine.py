"""The engine with a source that is no Hub: it offers no hash, or does not know its sizes."""

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from gptfast_cli.core.errors import NetworkError
from gptfast_cli.core.jobs.download import Downloaded, DownloadedFile
from gptfast_cli.core.transfer.digest import GIT_SHA1, SHA256
from gptfast_cli.core.transfer.fetching import Fetched, fetch
from gptfast_cli.core.transfer.local_layout import LocalLayout
from gptfast_cli.core.transfer.remote import PassingError
from gptfast_cli.render.download import write_downloaded
from transfer.downloads import QUICK
from transfer.fake_hub import git_sha1, sha256

CONTENT = bytes(range(256)) * 400


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
            raise PassingError("it broke off")


@dataclass
class MemoryFile:
    """See RemoteFile; each opening breaks off where `breaks` says, and is noted in `starts`."""

    name: str = "a.bin"
    size: int | None = len(CONTENT)
    version: str = "1"
    hashes: Mapping[str, str] = field(default_factory=dict)
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
    return fetch(file, LocalLayout(folder), watch=Silence(), patience=QUICK)


@pytest.mark.parametrize(
    ("hashes", "size", "by"),
    [
        ({}, len(CONTENT), None),
        ({"crc-of-tomorrow": "00"}, len(CONTENT), None),
        ({SHA256: sha256(CONTENT), GIT_SHA1: "no matter"}, len(CONTENT), SHA256),
        ({GIT_SHA1: git_sha1(CONTENT)}, None, GIT_SHA1),
        ({}, None, None),
    ],
)
def test_a_file_is_verified_by_the_strongest_hash_offered(
    tmp_path: Path, hashes: dict[str, str], size: int | None, by: str | None
) -> None:
    result = fetched(MemoryFile(hashes=hashes, size=size, breaks=[5000, None]), tmp_path)
    assert (result.verified_by, result.n_bytes) == (by, len(CONTENT))
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("later", "starts"),
    [
        ({}, [40_000]),
        ({"etag": '"f"'}, [0]),
        ({"version": "2"}, [0]),
        ({"size": None}, [0]),
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
