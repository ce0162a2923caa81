"""What `--verify-weights` finds damaged is whole again after the very line that its hint names."""

import os
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import constants

from gptfast_cli.app import command_tree
from gptfast_cli.core.checkpoints.downloads import downloaded_checksum
from gptfast_cli.core.checkpoints.reader import open_checkpoint
from gptfast_cli.core.checkpoints.resolve import resolve
from gptfast_cli.core.errors import CorruptError, GptFastError, NotFoundError, UsageError
from gptfast_cli.core.jobs.download import DownloadRequest, run
from gptfast_cli.core.jobs.origins import DownloadOptions
from gptfast_cli.options import Invocation
from hub.downloads import QUICK, REPO, WEIGHTS, download, some_files
from hub.fake_bucket import BUCKET, FakeS3
from hub.fake_hub import FakeHub
from model_files import converted, drained, edit_json, saved, settings_in

NAME = f"s3://{BUCKET}/date:2026 & more"


@pytest.fixture
def servers(hub: FakeHub, s3: FakeS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[FakeHub, FakeS3]:
    """Both, and what a command line started now would find in its environment."""
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setenv("GPTFAST_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return hub, s3


def run_line(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a command line as a shell would, in this process."""
    words = shlex.split(line)
    while "=" in words[0]:
        monkeypatch.setenv(*words.pop(0).split("=", 1))
    assert words.pop(0) == "gptfast"
    command_tree(plain=True)(words, prog_name="gptfast", standalone_mode=False, obj=Invocation())


def hint_of(folder: Path) -> str:
    """The line that is named where the weights of a folder are not whole."""
    with pytest.raises(CorruptError) as caught:
        list(open_checkpoint(folder).verify())
    introduction, _, line = caught.value.hint.partition(": ")
    assert introduction == "Fetch it again"
    return line


def flip(file: Path) -> None:
    """Change one bit, as a disk does it: the time of the last change stays."""
    times = file.stat()
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.resolve().write_bytes(content)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


def hf_folder(root: Path) -> dict[str, bytes]:
    return contents(saved(root / "maker", sharded=True))


def checkpoint(root: Path) -> dict[str, bytes]:
    """A checkpoint as its maker converted it, on another machine."""
    return contents(converted(saved(root / "maker"), settings_in(root / "of the maker")).path)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def from_hub(servers: tuple[FakeHub, FakeS3], files: dict[str, bytes], root: Path, local_dir: Path | None) -> Path:
    servers[0].add(REPO, files)
    return download(servers[0], root, local_dir=local_dir).path


def from_s3(servers: tuple[FakeHub, FakeS3], files: dict[str, bytes], root: Path, local_dir: Path | None) -> Path:
    servers[1].add("date:2026 & more", files)
    request = DownloadRequest(NAME, settings_in(root), local_dir=local_dir, terms=DownloadOptions(4, QUICK))
    return drained(run(request))[1].path


@pytest.mark.parametrize("make", [hf_folder, checkpoint])
@pytest.mark.parametrize("bring", [from_hub, from_s3])
@pytest.mark.parametrize("place", ["usual", "local", "elsewhere"])
def test_a_damaged_file_is_whole_again_after_the_line_that_is_named(
    servers: tuple[FakeHub, FakeS3],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make: Callable[[Path], dict[str, bytes]],
    bring: Callable[[tuple[FakeHub, FakeS3], dict[str, bytes], Path, Path | None], Path],
    place: str,
) -> None:
    files = make(tmp_path)
    local_dir = tmp_path / "my model's" if place == "local" else None
    folder = bring(servers, files, tmp_path / "other" if place == "elsewhere" else tmp_path, local_dir)
    weights = sorted(name for name in files if name.endswith(".safetensors"))
    for name in {weights[0], weights[-1]}:
        flip(folder / name)
    line = hint_of(folder)
    for server in servers:
        server.requests.clear()
    run_line(line, monkeypatch)
    assert {name: (folder / name).read_bytes() for name in files} == files
    assert list(open_checkpoint(folder).verify())
    fetched = {name for name in files for server in servers if server.sent_bytes(f"/{name}")}
    assert fetched == {weights[0], weights[-1]}


def test_without_force_what_has_the_right_size_counts_and_with_it_nothing_but_the_right_hash(
    hub: FakeHub, tmp_path: Path
) -> None:
    files = {**some_files(), "extra.bin": b"x" * 30_000}
    hub.add(REPO, files)
    path = download(hub, tmp_path, include=("*",)).path
    for name in ("extra.bin", WEIGHTS):
        flip(path / name)
    assert all(file.was_there for file in download(hub, tmp_path).files)
    planned = download(hub, tmp_path, force=True, dry_run=True)
    healed = download(hub, tmp_path, force=True)
    for outcome in (planned, healed):
        assert [file.name for file in outcome.files if not file.was_there] == ["extra.bin", WEIGHTS]
    assert healed.n_received == sum(len(files[name]) for name in ("extra.bin", WEIGHTS))
    assert {name: (path / name).read_bytes() for name in files} == files
    assert download(hub, tmp_path, force=True).n_received == 0


def test_a_file_that_is_damaged_stays_until_the_whole_one_is_there(hub: FakeHub, tmp_path: Path) -> None:
    files = some_files()
    hub.add(REPO, files)
    path = download(hub, tmp_path).path
    flip(path / WEIGHTS)
    hub.fail(WEIGHTS, "404")
    with pytest.raises(GptFastError):
        download(hub, tmp_path, force=True)
    assert len((path / WEIGHTS).read_bytes()) == len(files[WEIGHTS])


def test_what_a_person_changed_in_a_plain_folder_stays_as_it_is(
    servers: tuple[FakeHub, FakeS3], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = from_hub(servers, hf_folder(tmp_path), tmp_path, tmp_path / "mine")
    edit_json(folder / "config.json", lambda values: values.update(note="mine"))
    mine = (folder / "config.json").read_bytes()
    damaged = next(iter(open_checkpoint(folder).files))
    flip(damaged)
    run_line(hint_of(folder), monkeypatch)
    assert (folder / "config.json").read_bytes() == mine
    assert list(open_checkpoint(folder).verify())


@pytest.mark.parametrize("damage", ["cut short", "gone", "no JSON"])
def test_a_folder_that_does_not_open_names_the_line_too(
    servers: tuple[FakeHub, FakeS3], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    files = checkpoint(tmp_path)
    folder = from_hub(servers, files, tmp_path, None)
    shard = next(folder.glob("*.safetensors"))
    match damage:
        case "cut short":
            shard.resolve().write_bytes(shard.read_bytes()[:-5])
        case "gone":
            shard.unlink()
        case _:
            (folder / "gptfast.json").resolve().write_bytes(b"{" * len(files["gptfast.json"]))
    with pytest.raises(CorruptError) as caught:
        open_checkpoint(folder)
    run_line(caught.value.hint.removeprefix("Fetch it again: "), monkeypatch)
    assert {name: (folder / name).read_bytes() for name in files} == files


def test_notes_that_huggingface_hub_wrote_have_hashes_too(hub: FakeHub, tmp_path: Path) -> None:
    files = hf_folder(tmp_path)
    hub.add(REPO, files)
    folder = download(hub, tmp_path, local_dir=tmp_path / "local").path
    for note in folder.rglob("*.metadata"):
        note.write_text("".join(f"{line}\n" for line in note.read_text().split("\n")[:3]))
    file = next(iter(open_checkpoint(folder).files))
    checksum = downloaded_checksum(file)
    assert checksum is not None and checksum.is_of_file(file)
    flip(file)
    assert "gptfast download ORG/NAME --revision" in hint_of(folder)


def test_offline_no_hash_can_be_asked_for(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add(REPO, some_files())
    download(hub, tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UsageError, match="HF_HUB_OFFLINE") as caught:
        download(hub, tmp_path, force=True)
    assert caught.value.hint == "Go online: HF_HUB_OFFLINE=0 gptfast download org/model --force"


def test_a_folder_of_s3_is_that_of_the_prefix_that_its_notes_name(s3: FakeS3, tmp_path: Path) -> None:
    s3.add("a/b", some_files())
    settings = settings_in(tmp_path)
    drained(run(DownloadRequest(f"s3://{BUCKET}/a/b", settings, terms=DownloadOptions(4, QUICK))))
    assert resolve(f"s3://{BUCKET}/a/b", settings).path.is_dir()
    with pytest.raises(NotFoundError, match="not downloaded from S3 yet"):
        resolve(f"s3://{BUCKET}/a", settings)
    (settings.home / "downloads/s3" / BUCKET / "a" / "b").rename(settings.home / "downloads/s3" / BUCKET / "B")
    with pytest.raises(NotFoundError, match="not downloaded from S3 yet"):
        resolve(f"s3://{BUCKET}/B", settings)
