"""Nothing is written through a link, or into a file or folder of somebody else, that lies where a download writes."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from gptfast_cli.core.batch.output import open_output
from gptfast_cli.core.checkpoints.staging import staged_folder
from gptfast_cli.core.errors import CorruptError, GptFastError, UsageError
from gptfast_cli.core.files import PARTIAL
from hub.downloads import REPO, WEIGHTS, download, some_files
from hub.fake_hub import FakeHub, sha256
from model_files import settings_in

FILES = some_files()
PRECIOUS = b"what another program wrote"


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    file = tmp_path / "victim"
    file.write_bytes(PRECIOUS)
    return file


def places(root: Path, *, local: bool) -> tuple[Path, Path, Path]:
    """Where the weights, their beginning and their lock lie."""
    if local:
        notes = root / "local/.cache/huggingface/download"
        return root / "local" / WEIGHTS, notes / f"{WEIGHTS}{PARTIAL}", notes / f"{WEIGHTS}.lock"
    blobs, key = settings_in(root).hf_cache / "models--org--model" / "blobs", sha256(FILES[WEIGHTS])
    lock = settings_in(root).hf_cache / ".locks" / "models--org--model" / f"{key}.lock"
    return blobs / key, blobs / f"{key}{PARTIAL}", lock


def fetch(hub: FakeHub, root: Path, *, local: bool) -> Path:
    hub.add(REPO, FILES)
    return download(hub, root, local_dir=root / "local" if local else None).path


@pytest.mark.parametrize("local", [False, True])
@pytest.mark.parametrize("kind", ["symbolic", "dangling", "hard", "pipe"])
@pytest.mark.parametrize("which", ["final", "partial", "note"])
def test_a_link_where_a_file_is_to_be_is_replaced_and_not_followed(
    hub: FakeHub, tmp_path: Path, victim: Path, kind: str, which: str, local: bool
) -> None:
    final, partial, _ = places(tmp_path, local=local)
    place = {"final": final, "partial": partial, "note": Path(f"{partial}.json")}[which]
    place.parent.mkdir(parents=True)
    match kind:
        case "symbolic":
            place.symlink_to(victim)
        case "dangling":
            place.symlink_to(tmp_path / "nothing yet")
        case "hard":
            place.hardlink_to(victim)
        case _:
            os.mkfifo(place)
    path = fetch(hub, tmp_path, local=local)
    assert (path / WEIGHTS).read_bytes() == FILES[WEIGHTS] == final.read_bytes()
    assert not final.is_symlink()
    assert victim.read_bytes() == PRECIOUS and not (tmp_path / "nothing yet").exists()


@pytest.mark.parametrize("local", [False, True])
@pytest.mark.parametrize("kind", ["symbolic", "dangling", "pipe", "folder"])
def test_a_lock_that_is_no_plain_file_is_refused(
    hub: FakeHub, tmp_path: Path, victim: Path, kind: str, local: bool
) -> None:
    lock = places(tmp_path, local=local)[2]
    lock.parent.mkdir(parents=True)
    match kind:
        case "symbolic":
            lock.symlink_to(victim)
        case "dangling":
            lock.symlink_to(tmp_path / "nothing yet")
        case "pipe":
            os.mkfifo(lock)
        case _:
            lock.mkdir()
    with pytest.raises(CorruptError, match="where a file of this program belongs") as caught:
        fetch(hub, tmp_path, local=local)
    assert str(lock) in caught.value.message and "Remove it" in caught.value.hint
    assert victim.read_bytes() == PRECIOUS and not (tmp_path / "nothing yet").exists()


@pytest.mark.parametrize("which", ["final", "partial", "note"])
def test_a_folder_in_the_place_of_a_file_is_an_error_that_names_it(hub: FakeHub, tmp_path: Path, which: str) -> None:
    final, partial, _ = places(tmp_path, local=True)
    place = {"final": final, "partial": partial, "note": Path(f"{partial}.json")}[which]
    place.mkdir(parents=True)
    with pytest.raises(CorruptError) as caught:
        fetch(hub, tmp_path, local=True)
    assert str(place) in caught.value.message


@pytest.mark.parametrize("link", ["sub", ".cache", ".cache/huggingface/download"])
def test_a_link_among_the_folders_of_a_plain_folder_leads_nowhere(hub: FakeHub, tmp_path: Path, link: str) -> None:
    outside, local = tmp_path / "outside", tmp_path / "local"
    outside.mkdir()
    (local / link).parent.mkdir(parents=True)
    (local / link).symlink_to(outside)
    hub.add(REPO, {**FILES, "sub/more.json": b"{}"})
    with pytest.raises(CorruptError, match="leads out of"):
        download(hub, tmp_path, local_dir=local, include=("*.json",))
    assert not list(outside.iterdir())


def test_a_link_among_the_folders_of_a_snapshot_leads_nowhere(hub: FakeHub, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    repo = hub.add(REPO, {**FILES, "sub/more.json": b"{}"})
    snapshot = settings_in(tmp_path).hf_cache / "models--org--model" / "snapshots" / repo.commit
    snapshot.mkdir(parents=True)
    (snapshot / "sub").symlink_to(outside)
    with pytest.raises(CorruptError, match="leads out of"):
        download(hub, tmp_path, include=("*.json",))
    assert not list(outside.iterdir())


def test_a_cache_that_is_itself_a_link_is_used(hub: FakeHub, tmp_path: Path) -> None:
    (tmp_path / "other disk").mkdir()
    settings_in(tmp_path).hf_cache.symlink_to(tmp_path / "other disk")
    assert (fetch(hub, tmp_path, local=False) / WEIGHTS).read_bytes() == FILES[WEIGHTS]


@pytest.mark.parametrize("link", [Path.symlink_to, Path.hardlink_to])
def test_a_beginning_is_not_gone_on_with_through_a_link(
    hub: FakeHub, tmp_path: Path, link: Callable[[Path, Path], None]
) -> None:
    partial = places(tmp_path, local=False)[1]
    hub.add(REPO, FILES)
    hub.fail(WEIGHTS, "cut 0.9", "cut 0")
    with pytest.raises(GptFastError):
        download(hub, tmp_path)
    other = partial.rename(tmp_path / "other")
    begun = other.read_bytes()
    link(partial, other)
    hub.fail(WEIGHTS, "ok")
    assert (download(hub, tmp_path).path / WEIGHTS).read_bytes() == FILES[WEIGHTS]
    assert other.read_bytes() == begun


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_the_beginning_of_another_user_is_not_gone_on_with(hub: FakeHub, tmp_path: Path) -> None:
    partial = places(tmp_path, local=False)[1]
    hub.add(REPO, FILES)
    hub.fail(WEIGHTS, "cut 0.9", "cut 0")
    with pytest.raises(GptFastError):
        download(hub, tmp_path)
    os.chown(partial, 12345, 12345)
    hub.fail(WEIGHTS, "ok")
    assert download(hub, tmp_path).n_received >= len(FILES[WEIGHTS])


def work(place: Path) -> None:
    with staged_folder(place, "0a1b", replace=False) as staging:
        (staging / "file").write_text("mine")


def test_a_link_where_a_checkpoint_is_prepared_is_refused(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / ".place.0a1b.gptfast-resumable").symlink_to(outside)
    with pytest.raises(UsageError, match="is a link"):
        work(tmp_path / "place")
    assert not list(outside.iterdir())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_what_another_user_prepared_is_not_built_upon_nor_published(tmp_path: Path) -> None:
    for name in (".place.0a1b.gptfast-resumable", ".other.00.gptfast-replaced"):
        (tmp_path / name).mkdir()
        os.chown(tmp_path / name, 12345, 12345)
    with pytest.raises(UsageError, match="belongs to another user"):
        work(tmp_path / "place")
    work(tmp_path / "elsewhere")
    assert not (tmp_path / "other").exists()


def test_records_that_wait_are_not_written_through_a_link(tmp_path: Path, victim: Path) -> None:
    output = tmp_path / "answers.jsonl"
    output.with_name("answers.jsonl.waiting").symlink_to(victim)
    with pytest.raises(CorruptError, match="is a link"), open_output(output, {1: "a"}, in_order=True):
        pass
    assert victim.read_bytes() == PRECIOUS
