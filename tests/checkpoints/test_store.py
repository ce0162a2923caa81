"""The store keeps checkpoints under names, on any file system, and gives them back or away."""

import json
import time
from pathlib import Path

import pytest

from gptfast_cli.core.checkpoints.inventory import find_entries, remove, take_inventory
from gptfast_cli.core.checkpoints.manifest import MANIFEST_FILE
from gptfast_cli.core.checkpoints.store import DAMAGED, Store, open_store, store_name
from gptfast_cli.core.errors import UsageError
from model_files import cached_repo, converted, saved, settings_in

BAD_NAMES = [
    "..",
    "../x",
    "a/../b",
    "/etc",
    "a/b/c",
    "a//b",
    "a:",
    ":v",
    "a:b:c",
    ".hidden",
    "org/.hidden",
    "-m",
    "name.",
    "org--name",
    "a\\b",
    "C:\\x",
    "näme",
    "con",
    "NUL",
    "org/com1",
    "lpt9.txt",
    "a/aux:v",
]


@pytest.mark.parametrize("name", [*BAD_NAMES, "", " ", "a b", "a\nb", "x" * 300])
def test_a_name_that_could_leave_the_store_or_break_a_file_system_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="cannot be the name"):
        Store(tmp_path).folder(name)
    assert Store(tmp_path).find(name) is None


@pytest.mark.parametrize("name", ["tiny:int4-g32", "meta-llama/Llama-2-7b-chat-hf", "org/m.v1:int4-g32-gptq", "a_b"])
def test_a_good_name_is_one_folder_of_the_store(tmp_path: Path, name: str) -> None:
    assert Store(tmp_path).folder(name).parent == tmp_path / "checkpoints"


def test_names_that_differ_only_in_case_are_one(tmp_path: Path) -> None:
    assert Store(tmp_path).folder("Org/Model") == Store(tmp_path).folder("org/model")


def test_different_names_are_different_folders(tmp_path: Path) -> None:
    names = ["a/b", "a-b", "a_b", "a.b", "a:b", "a/b:c", "a:b-c", "ab"]
    assert len({Store(tmp_path).folder(name) for name in names}) == len(names)


@pytest.mark.parametrize("text", ["My model (2)", "con", "...", "--x--", "日本", "a:b", "fine-name", "x" * 300])
def test_any_folder_name_gives_a_name_for_the_store(tmp_path: Path, text: str) -> None:
    assert Store(tmp_path).folder(store_name(text)).name


def test_the_store_lists_what_it_holds(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    assert open_store(settings).entries() == ()
    cached_repo(settings.hf_cache, "Org/Model")
    made = [converted("Org/Model", settings), converted(saved(tmp_path / "other"), settings)]
    entries = open_store(settings).entries()
    assert [entry.name for entry in entries] == ["Org/Model", "other"]
    assert [(entry.path, entry.n_bytes, entry.n_params) for entry in entries] == [
        (result.path, result.n_bytes, result.n_params) for result in sorted(made, key=lambda result: result.name)
    ]
    assert {entry.scheme for entry in entries} == {"plain"}


def test_a_damaged_checkpoint_is_listed_and_can_be_removed(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    (converted(saved(tmp_path / "model"), settings).path / MANIFEST_FILE).write_text("{")
    (entry,) = open_store(settings).entries()
    assert (entry.name, entry.scheme) == ("model", DAMAGED)
    remove(find_entries(take_inventory(settings), entry.name), settings)
    assert open_store(settings).entries() == ()


@pytest.mark.parametrize(
    "text",
    [
        json.dumps({f"key {n}": n for n in range(50_000)})[:-1] + ', "key 49999": 0}',
        '{"format": ' + "9" * 5000 + "}",
        '{"format": 2}',
        '{"a": ' + "[" * 100_000,
    ],
    ids=["a key twice", "a long number", "a newer format", "deep nesting"],
)
def test_a_manifest_that_cannot_be_read_leaves_the_others_in_the_list(tmp_path: Path, text: str) -> None:
    settings = settings_in(tmp_path)
    converted(saved(tmp_path / "model"), settings)
    bad = settings.home / "checkpoints" / "org--bad"
    bad.mkdir()
    (bad / MANIFEST_FILE).write_text(text)
    began = time.thread_time()
    assert [(entry.name, entry.scheme) for entry in open_store(settings).entries()] == [
        ("model", "plain"),
        ("org/bad", DAMAGED),
    ]
    assert time.thread_time() - began < 5  # where it was quadratic, minutes


def test_a_folder_that_a_person_renamed_is_called_by_its_new_name(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    path = converted(saved(tmp_path / "model"), settings).path
    path.rename(path.with_name("org--copy@v2"))
    assert [entry.name for entry in open_store(settings).entries()] == ["org/copy:v2"]
    assert open_store(settings).find("org/copy:v2") is not None
