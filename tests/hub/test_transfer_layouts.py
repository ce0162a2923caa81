"""What is fetched is found by every other program: in the Hugging Face cache, and in a plain folder."""

from pathlib import Path

import pytest
from huggingface_hub import constants, hf_hub_download, scan_cache_dir, snapshot_download

from gptfast_cli.core.checkpoints.downloads import find_snapshot
from gptfast_cli.core.checkpoints.resolve import resolve
from gptfast_cli.core.checkpoints.store import read_current
from gptfast_cli.core.errors import CorruptError, NotFoundError, UsageError
from gptfast_cli.core.events import Note, Progress
from hub.downloads import REPO, WEIGHTS, download, some_files, watched
from hub.fake_hub import FakeHub, git_sha1, sha256
from model_files import saved, settings_in

FILES = some_files()
NEEDED = ("config.json", WEIGHTS, "tokenizer.json")


def model_files(folder: Path) -> dict[str, bytes]:
    """Files of a model that runs."""
    saved(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_cache_is_as_huggingface_hub_writes_it(hub: FakeHub, tmp_path: Path) -> None:
    repo = hub.add(REPO, FILES)
    ours = download(hub, tmp_path / "ours")
    theirs = Path(snapshot_download(REPO, cache_dir=tmp_path / "theirs", endpoint=hub.url, allow_patterns=list(NEEDED)))
    for name in NEEDED:
        links = [(folder / name).readlink() for folder in (ours.path, theirs)]
        assert links[0] == links[1]
        assert (ours.path / name).stat().st_mode == (theirs / name).stat().st_mode
    root = tmp_path / "ours" / "hub" / "models--org--model"
    assert (root / "refs" / "main").read_text() == repo.commit
    assert {path.name for path in (root / "blobs").iterdir()} == {
        sha256(FILES[WEIGHTS]),
        git_sha1(FILES["config.json"]),
        git_sha1(FILES["tokenizer.json"]),
    }


def test_huggingface_hub_finds_the_files_and_fetches_none(hub: FakeHub, tmp_path: Path) -> None:
    hub.add(REPO, FILES)
    path = download(hub, tmp_path).path
    cache = tmp_path / "hub"
    hub.requests.clear()
    assert snapshot_download(REPO, cache_dir=cache, local_files_only=True) == str(path)
    assert hf_hub_download(REPO, WEIGHTS, cache_dir=cache, endpoint=hub.url) == str(path / WEIGHTS)
    assert not [each for each in hub.requests if each.method == "GET"]
    scan = scan_cache_dir(cache)
    assert not scan.warnings and [each.repo_id for each in scan.repos] == [REPO]


def test_what_huggingface_hub_fetched_is_not_fetched_again(hub: FakeHub, tmp_path: Path) -> None:
    hub.add(REPO, FILES)
    snapshot_download(REPO, cache_dir=tmp_path / "hub", endpoint=hub.url)
    hub.requests.clear()
    assert all(file.was_there for file in download(hub, tmp_path).files)
    assert hub.sent_bytes(WEIGHTS) == 0


def test_a_model_that_runs_becomes_the_current_one(hub: FakeHub, tmp_path: Path) -> None:
    hub.add(REPO, model_files(tmp_path / "model"))
    downloaded = download(hub, tmp_path)
    settings = settings_in(tmp_path)
    assert downloaded.is_current and read_current(settings.home) == REPO
    assert resolve(None, settings).path == resolve(REPO, settings).path == downloaded.path


def test_what_does_not_run_is_here_and_not_the_current_model(hub: FakeHub, tmp_path: Path) -> None:
    hub.add(REPO, FILES)
    events, downloaded = watched(hub, tmp_path)
    assert not downloaded.is_current and read_current(settings_in(tmp_path).home) is None
    assert any(isinstance(event, Note) and "NoneThatIsKnown are not supported" in event.text for event in events)


@pytest.mark.parametrize("source", ["org/model@v1", "hf://org/model@v1", "org/model"])
def test_a_revision_is_asked_for_and_kept_under_its_name(hub: FakeHub, tmp_path: Path, source: str) -> None:
    repo = hub.add(REPO, model_files(tmp_path / "model"), revisions={"v1": "v1"})
    downloaded = download(hub, tmp_path, source, revision=None if "@" in source else "v1")
    settings = settings_in(tmp_path)
    assert (downloaded.name, downloaded.commit) == ("org/model@v1", repo.commit)
    assert read_current(settings.home) == "org/model@v1"
    assert resolve(None, settings).path == downloaded.path
    assert find_snapshot(settings.hf_cache, "org/model") is None


@pytest.mark.parametrize("revision", ["v1.0+cu118", "a#b", "refs/pr/1", "feature/x", "a%2Fb", "für&mich=?".strip("?")])
def test_a_revision_by_gits_rules_is_found_by_huggingface_hub_too(hub: FakeHub, tmp_path: Path, revision: str) -> None:
    hub.add(REPO, model_files(tmp_path / "model"), revisions={revision: revision})
    downloaded = download(hub, tmp_path, f"{REPO}@{revision}")
    cache = tmp_path / "hub"
    theirs = snapshot_download(REPO, revision=revision, cache_dir=cache, local_files_only=True)
    assert theirs == str(downloaded.path)
    settings = settings_in(tmp_path)
    assert resolve(None, settings).path == resolve(f"{REPO}@{revision}", settings).path == downloaded.path
    asked = [each.path for each in hub.requests if "/revision/" in each.path]
    assert asked == [f"/api/models/{REPO}/revision/{revision}"], "unquoted, as the server reads it"


def test_a_revision_beside_one_of_its_beginning_is_kept_by_its_commit(hub: FakeHub, tmp_path: Path) -> None:
    hub.add(REPO, model_files(tmp_path / "model"), revisions={"a": "a", "a/b": "a/b"})
    download(hub, tmp_path, f"{REPO}@a")
    events, downloaded = watched(hub, tmp_path, f"{REPO}@a/b")
    assert downloaded.name == f"{REPO}@{downloaded.commit}" == read_current(settings_in(tmp_path).home)
    assert any(isinstance(event, Note) and f"its name is {downloaded.name}" in event.text for event in events)
    assert resolve(None, settings_in(tmp_path)).path == downloaded.path


@pytest.mark.parametrize("form", ["path", "query"])
def test_the_next_page_of_a_listing_may_have_a_relative_address(hub: FakeHub, tmp_path: Path, form: str) -> None:
    hub.add(REPO, FILES)
    hub.link_form = form
    assert {file.name for file in download(hub, tmp_path, include=("*",)).files} == set(FILES)


def test_equal_files_are_fetched_once_and_nobody_waits_for_another_process(hub: FakeHub, tmp_path: Path) -> None:
    twins = {"a.safetensors": FILES[WEIGHTS], "b/a.safetensors": FILES[WEIGHTS], "c.json": b"{}", "d.json": b"{}"}
    hub.add(REPO, twins)
    hub.seconds_per_file = 0.3
    planned = download(hub, tmp_path, include=("*",), dry_run=True)
    events, downloaded = watched(hub, tmp_path, include=("*",))
    assert not any(isinstance(event, Note) and "another process" in event.text for event in events)
    assert planned.missing_bytes == downloaded.n_received == len(FILES[WEIGHTS]) + 2
    assert {name: (downloaded.path / name).read_bytes() for name in twins} == twins
    assert {file.verified_by for file in downloaded.files} == {"sha256", "git-sha1"}


def test_a_branch_moves_to_the_new_commit_when_all_of_it_is_there(hub: FakeHub, tmp_path: Path) -> None:
    hub.add(REPO, FILES)
    old = download(hub, tmp_path)
    hub.add(REPO, some_files(seed=1))
    hub.fail(WEIGHTS, "corrupt")
    with pytest.raises(CorruptError):
        download(hub, tmp_path)
    snapshot = find_snapshot(tmp_path / "hub", REPO)
    assert snapshot is not None and snapshot.path == old.path
    hub.fail(WEIGHTS, "ok")
    new = download(hub, tmp_path)
    snapshot = find_snapshot(tmp_path / "hub", REPO)
    assert snapshot is not None and snapshot.path == new.path != old.path


@pytest.mark.parametrize(
    ("source", "revision", "says"),
    [
        ("a/b/c", None, "not a valid repository name"),
        ("../b", None, "not a valid repository name"),
        ("", None, "not a valid repository name"),
        ("org/model@a", "b", "two revisions"),
        ("org/model", "../x", "not a valid revision name"),
        ("s3://bucket/../model", None, "s3://"),
    ],
)
def test_a_source_that_cannot_be_one_is_a_usage_error(
    hub: FakeHub, tmp_path: Path, source: str, revision: str | None, says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        download(hub, tmp_path, source, revision=revision)


def test_offline_it_is_what_the_cache_holds(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add(REPO, FILES)
    fetched = download(hub, tmp_path)
    hub.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    offline = download(hub, tmp_path)
    assert (offline.path, offline.n_bytes, offline.commit) == (fetched.path, fetched.n_bytes, fetched.commit)
    with pytest.raises(NotFoundError, match="HF_HUB_OFFLINE is set"):
        download(hub, tmp_path, "org/other")
    assert not hub.requests


def test_a_plain_folder_gets_the_files_and_the_notes_of_huggingface_hub(hub: FakeHub, tmp_path: Path) -> None:
    hub.add(REPO, {**FILES, "sub/more.json": b"{}"})
    folder = tmp_path / "plain"
    downloaded = download(hub, tmp_path, local_dir=folder, include=("*.json", "*.safetensors"))
    assert downloaded.path == folder and (folder / WEIGHTS).read_bytes() == FILES[WEIGHTS]
    assert (folder / "sub" / "more.json").read_bytes() == b"{}"
    assert not (tmp_path / "hub").exists()
    hub.requests.clear()
    hf_hub_download(REPO, WEIGHTS, local_dir=folder, endpoint=hub.url)
    hf_hub_download(REPO, "sub/more.json", local_dir=folder, endpoint=hub.url)
    assert not [each for each in hub.requests if each.method == "GET" and "/resolve/" in each.path]


def test_a_file_changed_in_a_plain_folder_is_fetched_again(hub: FakeHub, tmp_path: Path) -> None:
    hub.add(REPO, FILES)
    folder = tmp_path / "plain"
    download(hub, tmp_path, local_dir=folder)
    (folder / ".cache/huggingface/download" / f"{WEIGHTS}.metadata").unlink()
    assert all(file.was_there for file in download(hub, tmp_path, local_dir=folder).files), "its hash must do"
    (folder / ".cache/huggingface/download" / f"{WEIGHTS}.metadata").unlink()
    (folder / WEIGHTS).write_bytes(bytes(len(FILES[WEIGHTS])))
    again = download(hub, tmp_path, local_dir=folder)
    assert [file.name for file in again.files if not file.was_there] == [WEIGHTS]


def test_a_beginning_in_a_plain_folder_is_gone_on_with(hub: FakeHub, tmp_path: Path) -> None:
    hub.add(REPO, FILES)
    hub.fail(WEIGHTS, "cut 0.9", "500", "500", "500", "ok")
    with pytest.raises(Exception, match="500"):
        download(hub, tmp_path, local_dir=tmp_path / "plain")
    hub.requests.clear()
    hub.fail(WEIGHTS, "ok")
    download(hub, tmp_path, local_dir=tmp_path / "plain")
    assert hub.sent_bytes(WEIGHTS) < 100_000
    assert (tmp_path / "plain" / WEIGHTS).read_bytes() == FILES[WEIGHTS]


def test_a_dry_run_tells_and_writes_nothing(hub: FakeHub, tmp_path: Path) -> None:
    hub.add(REPO, model_files(tmp_path / "model"))
    planned = download(hub, tmp_path / "empty", dry_run=True)
    assert not (tmp_path / "empty").exists()
    assert planned.missing_bytes == planned.n_bytes > 0 and not planned.is_written
    assert planned.memory is not None
    sizes = list(planned.memory.weight_bytes.values())
    assert list(planned.memory.weight_bytes) == ["bfloat16", "int8", "int4"] and sizes == sorted(sizes, reverse=True)
    weights = next(file.n_bytes for file in planned.files if file.name == WEIGHTS)
    assert abs(2 * sizes[0] - weights) < 10_000, "half of the float32 weights, without the header"


def test_a_dry_run_tells_what_is_there_and_what_has_begun(hub: FakeHub, tmp_path: Path) -> None:
    hub.add(REPO, FILES)
    hub.fail(WEIGHTS, "cut 0.5", "cut 0")
    with pytest.raises(Exception, match="connection was lost"):
        download(hub, tmp_path)
    planned = {file.name: file for file in download(hub, tmp_path, dry_run=True).files}
    assert planned["config.json"].was_there and not planned[WEIGHTS].was_there
    assert planned[WEIGHTS].n_begun == 150_000


def test_progress_is_reported_for_each_file_and_in_all(hub: FakeHub, tmp_path: Path) -> None:
    hub.add(REPO, FILES)
    events, downloaded = watched(hub, tmp_path)
    progress = [event for event in events if isinstance(event, Progress)]
    for name in NEEDED:
        assert any(event.part == name and event.done == event.total == len(FILES[name]) for event in progress)
    assert progress[-1] == Progress("download", downloaded.n_bytes, downloaded.n_bytes, "bytes")


def test_a_file_in_xet_storage_alone_is_left_to_huggingface_hub(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(REPO, FILES, only_in_xet=frozenset({"config.json"}))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    events, downloaded = watched(hub, tmp_path)
    assert any(isinstance(event, Note) and event.text.startswith("config.json: is in Xet") for event in events)
    assert (downloaded.path / "config.json").read_bytes() == FILES["config.json"]
    assert {file.name: file.verified_by for file in downloaded.files}["config.json"] == "git-sha1"


def test_where_no_links_can_be_made_names_are_files(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_link(*_: object) -> None:
        raise OSError("not here")

    hub.add(REPO, FILES)
    monkeypatch.setattr(Path, "symlink_to", no_link)
    monkeypatch.setattr(Path, "hardlink_to", no_link)
    path = download(hub, tmp_path).path
    assert not (path / WEIGHTS).is_symlink() and (path / WEIGHTS).read_bytes() == FILES[WEIGHTS]
    assert all(file.was_there for file in download(hub, tmp_path).files)
