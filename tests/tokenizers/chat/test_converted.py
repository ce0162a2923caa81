"""A converted checkpoint has the chat templates of its source, and writes conversations as that does."""

import copy
import json
import shutil
from pathlib import Path

import pytest
from chat_samples import CONVERSATIONS, STYLES, oracle, special

from gptfast_cli.core.checkpoints.manifest import read_manifest
from gptfast_cli.core.checkpoints.reader import open_manifest_checkpoint
from gptfast_cli.core.errors import CorruptError
from gptfast_cli.core.tokenizers.chat import open_chat_template
from model_files import converted, edit_json, saved, settings_in

NAMED = "additional_chat_templates/tool use.jinja"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of transformers with a chat template, and another by name."""
    folder = saved(tmp_path_factory.mktemp("source"))
    tokenizer = copy.deepcopy(oracle(**special("llama_3")))
    tokenizer.chat_template = {
        "default": STYLES["llama_3_with_tools"].read_text("utf-8"),
        "tool use": STYLES["llama_3"].read_text("utf-8"),
    }
    tokenizer.save_pretrained(folder)
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": "of a processor"}))
    return folder


@pytest.fixture(scope="module")
def checkpoint(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What it is converted into."""
    folder = tmp_path_factory.mktemp("checkpoint")
    return converted(source, settings_in(folder), out=folder / "out", verify=True).path


def rendered(folder: Path, name: str | None) -> str:
    template = open_chat_template(folder, name)
    assert template is not None
    with template:
        return template.render(CONVERSATIONS["a system message and three turns"])


@pytest.mark.parametrize("name", [None, "tool use"])
def test_a_converted_checkpoint_writes_a_conversation_as_its_source_does(
    source: Path, checkpoint: Path, name: str | None
) -> None:
    assert rendered(checkpoint, name) == rendered(source, name)


def test_a_checkpoint_that_is_converted_again_keeps_all_templates(checkpoint: Path, tmp_path: Path) -> None:
    again = converted(checkpoint, settings_in(tmp_path), out=tmp_path / "again", verify=True).path
    assert rendered(again, "tool use") == rendered(checkpoint, "tool use") != rendered(again, None)


def test_damage_of_a_named_template_is_noticed(checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(checkpoint, tmp_path / "copy")
    (tmp_path / "copy" / NAMED).write_text("another")
    with pytest.raises(CorruptError, match="tool use"):
        list(open_manifest_checkpoint(tmp_path / "copy").verify())


def test_the_manifest_has_every_file_with_a_template(checkpoint: Path) -> None:
    entry = read_manifest(checkpoint).tokenizer
    assert entry is not None
    assert {NAMED, "chat_template.jinja", "chat_template.json"} <= set(entry.files)


@pytest.mark.parametrize(
    "name", ["../x.jinja", "a/../x", "/etc/passwd", "a/b/c", ".hidden", "a/.x", "a\\b", "c:x", "", "a/", "a\nb"]
)
def test_a_manifest_names_no_file_outside_of_its_folder(checkpoint: Path, tmp_path: Path, name: str) -> None:
    shutil.copy(checkpoint / "gptfast.json", tmp_path)
    edit_json(tmp_path / "gptfast.json", lambda manifest: manifest["tokenizer"].update(files={name: "0" * 64}))
    with pytest.raises(CorruptError, match="is not the name of a file in the folder"):
        read_manifest(tmp_path)
