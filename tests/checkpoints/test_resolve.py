"""A model is found in the order of the contract, and a name that means nothing is answered with the nearest ones."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gptfast_cli.core.checkpoints.downloads import cached_repos, find_snapshot, is_revision
from gptfast_cli.core.checkpoints.resolve import Resolved, resolve
from gptfast_cli.core.checkpoints.store import BUNDLED, bundled_folder, model_names, open_store, write_current
from gptfast_cli.core.errors import NotFoundError, UsageError
from gptfast_cli.core.settings import Settings
from model_files import cached_repo, converted, saved, settings_in


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A working folder, a store with `org/stored`, a cache with `org/cached`, and folders of each of those names."""
    settings = settings_in(tmp_path)
    cached_repo(settings.hf_cache, "org/cached", commit="c0ffee")
    converted(saved(tmp_path / "source"), settings, out=settings.home / "checkpoints" / "org--stored")
    (settings.home / "current").unlink()
    for name in ("tiny", "plain-folder"):
        (tmp_path / "work" / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work")
    return settings


def test_a_bundled_name_wins_over_a_folder(settings: Settings) -> None:
    assert resolve("tiny", settings) == Resolved(bundled_folder("tiny"), "tiny", "bundled")


def test_a_folder_of_a_bundled_name_is_written_as_a_path(settings: Settings) -> None:
    assert resolve("./tiny", settings) == Resolved(Path("tiny"), "./tiny", "a folder")


@pytest.mark.parametrize(
    ("name", "origin"),
    [
        ("plain-folder", "a folder"),
        ("org/stored", "in the store"),
        ("Org/Stored", "in the store"),
        ("org/cached", "in the Hugging Face cache"),
        ("org/cached@main", "in the Hugging Face cache"),
        ("org/cached@c0ffee", "in the Hugging Face cache"),
        ("hf://org/cached", "in the Hugging Face cache"),
    ],
)
def test_each_kind_of_name_is_found(settings: Settings, name: str, origin: str) -> None:
    resolved = resolve(name, settings)
    assert (resolved.name, resolved.origin) == (name, origin)
    assert resolved.path.is_dir()


def test_a_folder_wins_over_the_store_and_the_store_over_the_cache(settings: Settings) -> None:
    cached_repo(settings.hf_cache, "org/stored")
    assert resolve("org/stored", settings).origin == "in the store"
    Path("org/stored").mkdir(parents=True)
    assert resolve("org/stored", settings).origin == "a folder"


def test_with_no_name_and_nothing_made_ready_it_is_the_bundled_one(settings: Settings) -> None:
    assert resolve(None, settings) == Resolved(bundled_folder("tiny"), "tiny", "bundled")


def test_the_model_last_made_ready_comes_before_the_bundled_one(settings: Settings) -> None:
    write_current(settings.home, "org/stored")
    resolved = resolve(None, settings)
    assert (resolved.name, resolved.origin) == ("org/stored", "current model")


def test_a_name_given_comes_before_everything(settings: Settings) -> None:
    write_current(settings.home, "org/stored")
    assert resolve("plain-folder", settings).name == "plain-folder"


def test_a_current_folder_is_found_from_anywhere(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    write_current(settings.home, Path("plain-folder"))
    monkeypatch.chdir("/")
    assert resolve(None, settings).path.name == "plain-folder"


def test_the_model_last_made_ready_is_not_a_folder_of_its_name(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write_current(settings.home, "org/stored")
    (tmp_path / "elsewhere" / "org" / "stored").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert resolve(None, settings).path == open_store(settings).find("org/stored")


def test_a_current_model_that_is_gone_is_said_so(settings: Settings) -> None:
    write_current(settings.home, "org/gone")
    with pytest.raises(NotFoundError, match="org/gone: the current model no longer exists") as caught:
        resolve(None, settings)
    assert "--model tiny" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("org/store", "Did you mean org/stored"),
        ("tinny", "Did you mean tiny"),
        ("some/other", "gptfast download some/other"),
        ("nothing-like-it", "gptfast --list"),
        ("org/cached@v2", "Did you mean org/cached"),
        ("./no/such/folder", "gptfast --list"),
        ("tiny:int4-g32", "Did you mean tiny"),
        ("../../etc", "gptfast --list"),
        ("C:\\models\\x", "gptfast --list"),
        ("x" * 5000, "gptfast --list"),
    ],
)
def test_a_name_that_means_nothing_is_answered_with_what_may_be_meant(settings: Settings, name: str, hint: str) -> None:
    with pytest.raises(NotFoundError) as caught:
        resolve(name, settings)
    assert hint in caught.value.hint
    assert name[:100] in caught.value.message  # of a long one a message has both ends


@pytest.mark.parametrize("name", ["", "  "])
def test_an_empty_name_is_a_usage_error(settings: Settings, name: str) -> None:
    with pytest.raises(UsageError, match="empty"):
        resolve(name, settings)


def test_a_file_is_answered_with_its_folder(settings: Settings) -> None:
    Path("plain-folder/model.safetensors").write_bytes(b"")
    Path("plain-folder/config.json").write_text("{}")
    with pytest.raises(UsageError) as caught:
        resolve("plain-folder/model.safetensors", settings)
    assert caught.value.hint.endswith("plain-folder")


def test_a_gguf_file_is_a_model(settings: Settings) -> None:
    for name in ("model.gguf", "sha256-c0ffee"):  # a program may keep it by its hash
        Path(name).write_bytes(b"GGUF")
        assert resolve(name, settings) == Resolved(Path(name), name, "a file")


@pytest.mark.parametrize("choice", ["Q4_K_M", "q4_k_m", "big-Q4_K_M.gguf", "big-Q4_K_M"])
def test_one_of_several_gguf_files_is_named_after_a_colon(settings: Settings, choice: str) -> None:
    snapshot = settings.hf_cache / "models--org--cached" / "snapshots" / "c0ffee"
    for folder in (snapshot, Path("plain-folder")):
        for name in ("big-Q4_K_M.gguf", "big-Q8_0-00001-of-00002.gguf", "big-Q8_0-00002-of-00002.gguf"):
            (folder / name).write_bytes(b"GGUF")
    for whole, folder in (("org/cached", snapshot), ("hf://org/cached@main", snapshot), ("plain-folder", None)):
        found = resolve(f"{whole}:{choice}", settings)
        assert found.path == (folder or Path("plain-folder")) / "big-Q4_K_M.gguf"
        assert found.name == f"{whole}:{choice}"
    write_current(settings.home, f"org/cached:{choice}")
    assert resolve(None, settings).path == snapshot / "big-Q4_K_M.gguf"
    assert resolve("org/cached:Q8_0", settings).path == snapshot / "big-Q8_0-00001-of-00002.gguf"
    with pytest.raises(NotFoundError, match="org/cached: has no GGUF file 'Q2_K'") as missing:
        resolve("org/cached:Q2_K", settings)
    assert missing.value.hint == "It has Q4_K_M (4 bytes), Q8_0 (8 bytes)."


def test_a_revision_of_a_cached_repository_is_followed_through_its_ref(settings: Settings) -> None:
    folder = settings.hf_cache / "models--org--cached"
    (folder / "refs" / "pr").mkdir()
    (folder / "refs" / "pr" / "1").write_text("beef")
    (folder / "snapshots" / "beef").mkdir()
    snapshot = find_snapshot(settings.hf_cache, "org/cached@pr/1")
    assert snapshot is not None
    assert (snapshot.repo, snapshot.commit, snapshot.path.name) == ("org/cached", "beef", "beef")


REVISIONS = (
    *("main", "v1.0+cu118", "a#b", "refs/pr/1", "feature/x", "a@b", "ü", "a&b", "$x"),
    *("a..b", "a/.b", "a//b", "/a", "a/", "a.", "@", "a@{b", "a~1"),
    *("a^", "a:b", "a?", "a*", "a[", "..", "a.lock", "a.lock/b", ""),
    *("a b", "a\\b", "x\x7f"),
)


@pytest.mark.skipif(shutil.which("git") is None, reason="git is the oracle")
def test_a_revision_is_what_git_allows() -> None:
    git = ["git", "check-ref-format", "--allow-onelevel"]
    allowed = [name for name in REVISIONS if subprocess.run([*git, name], check=False).returncode == 0]
    assert [name for name in REVISIONS if is_revision(name)] == allowed


def test_a_name_with_a_double_dash_is_not_that_of_another_repository(settings: Settings) -> None:
    assert find_snapshot(settings.hf_cache, "org/cached") is not None
    assert find_snapshot(settings.hf_cache, "org--cached") is None


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("org/new@feature/x", "gptfast download org/new@feature/x"),
        ("org/new@a#b", "gptfast download 'org/new@a#b'"),
        ("s3://team/a&b", "gptfast download 's3://team/a&b'"),
    ],
)
def test_a_name_not_fetched_yet_is_answered_with_a_line_that_a_shell_takes(
    settings: Settings, name: str, command: str
) -> None:
    with pytest.raises(NotFoundError) as caught:
        resolve(name, settings)
    assert caught.value.hint.splitlines() == [f"Fetch it: {command}", "List the models: gptfast --list"]


@pytest.mark.parametrize(
    "name", ["org/cached@../../..", "../hub/x", "a/b/c", "", "org/cached@c0ffee/..", "org/cached@."]
)
def test_no_name_leads_out_of_the_cache(settings: Settings, name: str) -> None:
    assert find_snapshot(settings.hf_cache, name) is None


def test_every_name_that_is_listed_is_found(settings: Settings) -> None:
    names = model_names(settings)
    assert set(names) >= {*BUNDLED, *cached_repos(settings.hf_cache)}
    assert all(resolve(name, settings).path.is_dir() for name in names if name not in BUNDLED)


def test_names_are_listed_and_resolved_without_torch() -> None:
    code = "import sys, gptfast_cli.core.checkpoints.resolve; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
