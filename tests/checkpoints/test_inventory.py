"""What `gptfast --list` knows of: every model that has a name here, and what can be removed."""

import json
import shutil
from pathlib import Path

import pytest

from gptfast_cli.core.checkpoints.downloads import parse_bucket_path
from gptfast_cli.core.checkpoints.inventory import find_entries, remove, take_inventory
from gptfast_cli.core.checkpoints.manifest import MANIFEST_FILE
from gptfast_cli.core.checkpoints.store import (
    BUNDLED,
    bundled_folder,
    read_current,
    record_source,
    recorded_source,
    write_current,
)
from gptfast_cli.core.download_notes import write_note
from gptfast_cli.core.errors import NotFoundError, UsageError
from gptfast_cli.core.settings import Settings

REPO, BUCKET_PATH = "org/llama", "s3://team/drafts/a b"
STORED = "mine:int4-g32"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """A home and a Hugging Face cache with a model of each kind."""
    settings = Settings(tmp_path / "home", tmp_path / "hub")
    stored = settings.home / "checkpoints" / "mine@int4-g32"
    stored.mkdir(parents=True)
    for file in bundled_folder("tiny-draft").iterdir():
        (stored / file.name).symlink_to(file)
    repo = settings.hf_cache / "models--org--llama"
    for commit, config in (
        ("aaa", "{}"),
        ("bbb", '{"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 128}}'),
    ):
        (repo / "snapshots" / commit).mkdir(parents=True)
        (repo / "snapshots" / commit / "config.json").write_text(config)
    (repo / "refs" / "pr").mkdir(parents=True)
    (repo / "refs" / "main").write_text("aaa")
    (repo / "refs" / "pr" / "1").write_text("bbb")
    bucket_path = parse_bucket_path(BUCKET_PATH)
    assert bucket_path is not None
    fetched = bucket_path.folder(settings.home)
    fetched.mkdir(parents=True)
    (fetched / "config.json").write_text("{")
    write_note(fetched, "config.json", version="1", checksum=None, source=BUCKET_PATH)
    return settings


def test_every_model_that_has_a_name_is_listed_with_its_place_and_scheme(settings: Settings) -> None:
    inventory = take_inventory(settings)
    assert [(each.name, each.where, each.scheme) for each in inventory.entries] == [
        ("tiny", "bundled", "plain"),
        ("tiny-draft", "bundled", "plain"),
        (STORED, "store", "plain"),
        (REPO, "Hugging Face cache", "plain"),
        (f"{REPO}@pr/1", "Hugging Face cache", "gptq-4bit-g128"),
        (BUCKET_PATH, "S3", "damaged"),
    ]
    assert inventory.current == BUNDLED[0]
    linked_once = sum(each.n_bytes for each in inventory.entries if each.name != STORED)
    assert inventory.n_bytes == linked_once


@pytest.mark.parametrize("current", [STORED, REPO, BUCKET_PATH])
def test_the_current_model_is_known_wherever_it_is(settings: Settings, current: str) -> None:
    write_current(settings.home, current)
    inventory = take_inventory(settings)
    assert inventory.current == current in {each.name for each in inventory.entries}


def test_a_current_folder_elsewhere_is_listed_too(settings: Settings, tmp_path: Path) -> None:
    write_current(settings.home, tmp_path)
    assert take_inventory(settings).entries[-1].path == tmp_path.resolve()


@pytest.mark.parametrize(("name", "others"), [(STORED.upper(), 5), (REPO, 4), (f"hf://{REPO}", 4), (BUCKET_PATH, 5)])
def test_what_is_removed_is_gone_and_no_longer_current(settings: Settings, name: str, others: int) -> None:
    (entry, *_) = entries = find_entries(take_inventory(settings), name)
    write_current(settings.home, entry.name)
    remove(entries, settings)
    assert len(take_inventory(settings).entries) == others
    assert read_current(settings.home) is None
    assert not any(each.path.exists() for each in entries)


def test_removing_leaves_another_current_model_alone(settings: Settings) -> None:
    write_current(settings.home, REPO)
    remove(find_entries(take_inventory(settings), STORED), settings)
    assert read_current(settings.home) == REPO


def test_of_a_linked_entry_the_link_alone_is_removed(settings: Settings, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    (settings.home / "checkpoints" / "mine@int4-g32").rename(elsewhere)
    link = settings.home / "checkpoints" / "linked"
    link.symlink_to(elsewhere)
    remove(find_entries(take_inventory(settings), "linked"), settings)
    assert not link.is_symlink() and (elsewhere / MANIFEST_FILE).is_file()
    assert list(link.parent.iterdir()) == []


def set_recipe(folder: Path, recipe: str) -> None:
    """Give a checkpoint a manifest with this recipe."""
    manifest = json.loads((folder / MANIFEST_FILE).read_text())
    manifest["provenance"]["recipe"] = recipe
    (folder / MANIFEST_FILE).unlink()  # a link to the bundled one
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest))


def test_removing_a_checkpoint_deletes_the_record_of_its_source(settings: Settings, tmp_path: Path) -> None:
    removed, other = 64 * "a", 64 * "b"
    set_recipe(settings.home / "checkpoints" / "mine@int4-g32", removed)
    for recipe in (removed, other):
        record_source(settings.home, recipe, tmp_path)
    remove(find_entries(take_inventory(settings), STORED), settings)
    assert [file.name for file in (settings.home / "sources").iterdir()] == [other]


@pytest.mark.parametrize("is_link", [False, True])
def test_the_record_of_a_source_stays_while_another_checkpoint_needs_it(
    settings: Settings, tmp_path: Path, *, is_link: bool
) -> None:
    stored, other = settings.home / "checkpoints" / "mine@int4-g32", settings.home / "checkpoints" / "other"
    set_recipe(stored, 64 * "a")
    if is_link:
        other.symlink_to(stored.rename(tmp_path / "elsewhere"))
    else:
        shutil.copytree(stored, other)
    record_source(settings.home, 64 * "a", tmp_path)
    remove(find_entries(take_inventory(settings), "other"), settings)
    assert recorded_source(settings.home, 64 * "a") == tmp_path


@pytest.mark.parametrize("name", ["nosuch", "no/such", "..", "", "@"])
def test_a_name_that_is_none_is_not_found(settings: Settings, name: str) -> None:
    with pytest.raises(NotFoundError, match="not found"):
        find_entries(take_inventory(settings), name)


@pytest.mark.parametrize(("name", "says"), [("tiny", "comes with gptfast"), (f"{REPO}@pr/1", "revisions and files")])
def test_what_cannot_go_alone_is_refused(settings: Settings, name: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        find_entries(take_inventory(settings), name)
