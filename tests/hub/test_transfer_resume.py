"""A download that was stopped goes on from where it was, and two at once fetch each file once."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from cli.command_line import CommandLine, environment_of
from gptfast_cli.core.errors import NetworkError
from gptfast_cli.core.events import Note
from gptfast_cli.core.jobs.download import Downloaded
from hub.downloads import QUICK, REPO, WEIGHTS, download, partials, some_files, wait_for_bytes, watched
from hub.fake_hub import FakeHub, sha256

FILES = some_files()
LARGE_FILES = some_files(3_000_000)  # of several of the pieces in which a beginning is read
N_BYTES = len(FILES[WEIGHTS])
CHUNK_BYTES = 1 << 16


def interrupted(hub: FakeHub, folder: Path, *, share: float) -> None:
    """A download that ended after a share of the weights, and had all the rest by then."""
    download(hub, folder, exclude=(WEIGHTS,))
    hub.fail(WEIGHTS, f"cut {share}", "cut 0")
    with pytest.raises(NetworkError):
        download(hub, folder)
    hub.fail(WEIGHTS, "ok")
    hub.requests.clear()


def test_only_the_rest_is_fetched_the_next_time(hub: FakeHub, tmp_path: Path) -> None:
    hub.add(REPO, FILES)
    interrupted(hub, tmp_path, share=0.9)
    downloaded = download(hub, tmp_path)
    assert (downloaded.path / WEIGHTS).read_bytes() == FILES[WEIGHTS]
    assert downloaded.n_received == hub.sent_bytes(WEIGHTS) <= 0.1 * N_BYTES + CHUNK_BYTES
    assert not partials(tmp_path)


def test_a_long_beginning_is_hashed_whole_so_that_only_the_rest_is_fetched(hub: FakeHub, tmp_path: Path) -> None:
    hub.add(REPO, LARGE_FILES)
    interrupted(hub, tmp_path, share=0.9)
    events, downloaded = watched(hub, tmp_path)
    assert (downloaded.path / WEIGHTS).read_bytes() == LARGE_FILES[WEIGHTS]
    assert downloaded.n_received == hub.sent_bytes(WEIGHTS) <= 0.1 * len(LARGE_FILES[WEIGHTS]) + CHUNK_BYTES
    assert not any(isinstance(event, Note) and "checksum mismatch" in event.text for event in events)


@pytest.mark.parametrize("position", [0, 2_600_000])
def test_a_beginning_that_was_damaged_on_the_disk_is_found_out(hub: FakeHub, tmp_path: Path, position: int) -> None:
    hub.add(REPO, LARGE_FILES)
    interrupted(hub, tmp_path, share=0.9)
    (partial,) = (path for path in partials(tmp_path) if path.suffix != ".json")
    with partial.open("r+b") as file:
        file.seek(position)
        file.write(b"damage")
    events, downloaded = watched(hub, tmp_path)
    assert (downloaded.path / WEIGHTS).read_bytes() == LARGE_FILES[WEIGHTS]
    assert any(isinstance(event, Note) and "checksum mismatch" in event.text for event in events)


@pytest.mark.parametrize("spoil", ["remove", "not JSON", '{"size": 1}', "{}"])
def test_a_beginning_is_worth_nothing_without_its_note(hub: FakeHub, tmp_path: Path, spoil: str) -> None:
    hub.add(REPO, FILES)
    interrupted(hub, tmp_path, share=0.5)
    (note,) = (path for path in partials(tmp_path) if path.suffix == ".json")
    note.unlink() if spoil == "remove" else note.write_text(spoil)
    download(hub, tmp_path)
    assert hub.sent_bytes(WEIGHTS) == N_BYTES


def test_the_rest_is_asked_for_only_if_the_file_is_still_the_same(hub: FakeHub, tmp_path: Path) -> None:
    hub.add(REPO, FILES)
    interrupted(hub, tmp_path, share=0.5)
    hub.fail(WEIGHTS, "changed")
    download(hub, tmp_path)
    assert hub.sent_bytes(WEIGHTS) == N_BYTES, "another ETag must bring all of it"


def test_a_beginning_of_an_older_commit_is_swept(hub: FakeHub, tmp_path: Path) -> None:
    hub.add(REPO, FILES)
    interrupted(hub, tmp_path, share=0.5)
    hub.add(REPO, some_files(seed=1))
    download(hub, tmp_path)
    assert not partials(tmp_path)


def test_orphans_are_swept_once_nobody_has_touched_them_for_long(hub: FakeHub, tmp_path: Path) -> None:
    hub.add(REPO, FILES)
    blobs = tmp_path / "hub" / "models--org--model" / "blobs"
    blobs.mkdir(parents=True)
    names = [f"{age}{suffix}" for age in ("old", "new") for suffix in (".gptfast-partial", ".1a2b3c4d.incomplete")]
    for name in names:
        (blobs / name).write_bytes(b"left")
    for name in names[:2]:
        os.utime(blobs / name, (0, 0))
    download(hub, tmp_path)
    assert {path.name for path in blobs.iterdir()} - {sha256(FILES[WEIGHTS])} >= set(names[2:])
    assert not any((blobs / name).exists() for name in names[:2])


def test_two_downloads_at_once_fetch_each_file_once(hub: FakeHub, tmp_path: Path) -> None:
    hub.add(REPO, FILES)
    hub.seconds_per_file = 0.3
    results: list[Downloaded] = []
    threads = [threading.Thread(target=lambda: results.append(download(hub, tmp_path))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [result.n_bytes for result in results] == [results[0].n_bytes] * 2
    assert hub.sent_bytes(WEIGHTS) == N_BYTES
    assert (results[0].path / WEIGHTS).read_bytes() == FILES[WEIGHTS]


def test_files_are_fetched_side_by_side_and_no_more_than_asked(hub: FakeHub, tmp_path: Path) -> None:
    hub.add(REPO, {f"{n}.json": b"{}%d" % n for n in range(8)})
    hub.seconds_per_file = 0.05
    download(hub, tmp_path, n_workers=3)
    assert hub.most_at_once == 3


def test_a_file_that_is_there_is_not_fetched_again(hub: FakeHub, tmp_path: Path) -> None:
    hub.add(REPO, FILES)
    download(hub, tmp_path)
    hub.requests.clear()
    again = download(hub, tmp_path)
    assert all(file.was_there for file in again.files) and again.n_received == 0
    assert all("/api/" in each.path for each in hub.requests)


def test_a_file_of_the_wrong_size_in_the_cache_is_fetched_again(hub: FakeHub, tmp_path: Path) -> None:
    hub.add(REPO, FILES)
    first = download(hub, tmp_path)
    (first.path / WEIGHTS).resolve().write_bytes(b"cut")
    assert (download(hub, tmp_path).path / WEIGHTS).read_bytes() == FILES[WEIGHTS]


def command_line(hub: FakeHub, folder: Path) -> CommandLine:
    environment = environment_of(folder / "home") | {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1"}
    return CommandLine((sys.executable, "-m", "gptfast_cli"), environment)


def test_a_kill_at_nine_tenths_costs_a_tenth(hub: FakeHub, tmp_path: Path) -> None:
    files = some_files(2_000_000)
    hub.add(REPO, files)
    hub.fail(WEIGHTS, "hold 0.9", "ok")
    gptfast = command_line(hub, tmp_path)
    with gptfast.start("download", REPO) as process:
        assert hub.holding.wait(30)
        wait_for_bytes(tmp_path, 1_800_000)
        process.send_signal(signal.SIGKILL)
    hub.requests.clear()
    outcome = gptfast.run("download", REPO)
    assert outcome.returncode == 0, outcome.stderr
    assert (Path(outcome.stdout.decode().strip()) / WEIGHTS).read_bytes() == files[WEIGHTS]
    assert hub.sent_bytes(WEIGHTS) <= 200_000 + CHUNK_BYTES


def test_ctrl_c_ends_with_130_and_keeps_what_arrived(hub: FakeHub, tmp_path: Path) -> None:
    hub.add(REPO, FILES)
    hub.fail(WEIGHTS, "hold 0.9")
    with command_line(hub, tmp_path).start("download", REPO) as process:
        assert hub.holding.wait(30)
        wait_for_bytes(tmp_path, 270_000)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=10)
    assert process.returncode == 130
    assert partials(tmp_path)


PROGRAMS = {
    "measured": "-m gptfast_cli",
    "taken for a large one": Path(__file__).parent / "on_disk_that_seems_large.py",
}


@pytest.mark.parametrize("disk", PROGRAMS)
def test_a_small_disk_that_runs_full_ends_with_8(hub: FakeHub, tmp_path: Path, disk: str) -> None:
    probe = subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False)
    if probe.returncode:
        pytest.skip("needs the right to mount a tmpfs")
    hub.add(REPO, some_files(6_000_000))
    folder = tmp_path / "disk"
    folder.mkdir()
    gptfast = CommandLine(("unshare", "-rm", "sh", "-c"), command_line(hub, tmp_path).environment)
    outcome = gptfast.run(
        f"mount -t tmpfs -o size=3M none {folder} && exec {sys.executable} {PROGRAMS[disk]} "
        f"download {REPO} --local-dir {folder}/model"
    )
    stderr = outcome.stderr.decode()
    assert outcome.returncode == 8, stderr
    assert "hint: Free some space" in stderr and len([line for line in stderr.splitlines() if "error" in line]) == 1
    assert ("while it was being written" in stderr) == (disk != "measured")


def test_patience_grows_and_ends() -> None:
    from gptfast_cli.core.hub.remote import TransientError

    waits = [QUICK.wait_seconds(n, TransientError("x")) for n in (1, 2, 3)]
    assert waits[0] is not None and waits[1] is not None and waits[2] is None
    assert 0.007 < waits[0] < 0.013 < waits[1] < 0.026
    assert QUICK.wait_seconds(1, TransientError("x", wait_seconds=1.5)) == 1.5
    assert QUICK.wait_seconds(1, TransientError("x", wait_seconds=3)) is None
