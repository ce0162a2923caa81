"""A model's chat templates are found where transformers finds them, and taken by name."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from chat_samples import oracle, user
from transformers import AutoTokenizer

from gptfast_cli.core.errors import CorruptError, NotFoundError, UsageError
from gptfast_cli.core.tokenizers import tokenizer_files
from gptfast_cli.core.tokenizers.chat import open_chat_template, read_chat_template

Layout = Mapping[str, Any]

IN_CONFIG = "tokenizer_config.json"
IN_JINJA = "chat_template.jinja"
TOOL_USE = "additional_chat_templates/tool_use.jinja"
RAG = "additional_chat_templates/rag.v2.jinja"
IN_PROCESSOR = "chat_template.json"


def named(**templates: str) -> dict[str, Any]:
    return {"chat_template": [{"name": name, "template": text} for name, text in templates.items()]}


LAYOUTS: dict[str, Layout] = {
    "in the config": {IN_CONFIG: {"chat_template": "config"}},
    "several in the config": {IN_CONFIG: named(default="config", tool_use="tools")},
    "a map in the config": {IN_CONFIG: {"chat_template": {"default": "config", "rag": "rag"}}},
    "no default in the config": {IN_CONFIG: named(rag="rag", tool_use="tools")},
    "a Jinja file": {IN_JINJA: "{{ bos_token }}jinja\n"},
    "a Jinja file and the config": {IN_JINJA: "jinja", IN_CONFIG: {"chat_template": "config"}},
    "a Jinja file and several in the config": {IN_JINJA: "jinja", IN_CONFIG: named(default="config", rag="rag")},
    "several Jinja files": {IN_JINJA: "jinja", TOOL_USE: "tools", RAG: "rag"},
    "no default among Jinja files": {TOOL_USE: "tools", RAG: "rag"},
    "a named Jinja file and the config": {TOOL_USE: "tools", IN_CONFIG: {"chat_template": "config"}},
    "Windows lines": {IN_JINJA: "a\r\n{{ 'b\r\nc' }}\r\n"},
    "none": {},
    "null": {IN_CONFIG: {"chat_template": None}},
    "a processor's beside the tokenizer's": {IN_PROCESSOR: {"chat_template": "p"}, IN_CONFIG: {"chat_template": "t"}},
}
NAMES = (None, "default", "tool_use", "rag", "rag.v2")


def write(folder: Path, layout: Layout) -> Path:
    """A tokenizer's folder with chat templates."""
    oracle(bos_token="<s>").save_pretrained(folder)
    for name, content in layout.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        if isinstance(content, str):
            path.write_bytes(content.encode())
        else:
            kept = json.loads(path.read_text()) if path.exists() else {}
            path.write_text(json.dumps(kept | content))
    return folder


def rendered(folder: Path, name: str | None) -> str | None:
    template = open_chat_template(folder, name)
    if template is None:
        return None
    with template:
        return template.render([user("a")])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_template_of_a_folder_is_the_one_that_transformers_takes(tmp_path: Path, layout: str) -> None:
    theirs = AutoTokenizer.from_pretrained(write(tmp_path, LAYOUTS[layout]))
    there = theirs.chat_template if isinstance(theirs.chat_template, dict) else {"default": theirs.chat_template}
    for name in NAMES:
        if theirs.chat_template is None and name is None:
            assert rendered(tmp_path, name) is None
        elif (name or "default") in there and theirs.chat_template is not None:
            text = theirs.get_chat_template(name if isinstance(theirs.chat_template, dict) else None)
            expected = theirs.apply_chat_template([user("a")], chat_template=text, tokenize=False)
            assert rendered(tmp_path, name) == expected
        else:
            with pytest.raises(UsageError):
                rendered(tmp_path, name)


@pytest.mark.parametrize("name", [None, "no_such"])
def test_a_name_that_is_not_there_is_answered_with_those_that_are(tmp_path: Path, name: str | None) -> None:
    write(tmp_path, LAYOUTS["no default among Jinja files"])
    with pytest.raises(UsageError, match=name or "default") as caught:
        open_chat_template(tmp_path, name)
    assert "rag.v2, tool_use" in caught.value.hint


def test_a_processors_template_is_taken_where_the_tokenizer_has_none(tmp_path: Path) -> None:
    write(tmp_path, {IN_PROCESSOR: {"chat_template": "processor {{ bos_token }}"}})
    assert rendered(tmp_path, None) == "processor <s>"


def test_a_file_of_ones_own_is_given_the_special_tokens_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "own.jinja").write_text("{{ bos_token }} {{ messages[0].content }} é")
    with read_chat_template(tmp_path / "own.jinja", write(tmp_path / "model", {IN_JINJA: "its own"})) as template:
        assert template.render([user("a")]) == "<s> a é"


def test_a_file_of_ones_own_that_is_not_there_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"own\.jinja"):
        read_chat_template(tmp_path / "own.jinja", tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (IN_JINJA, b"\xff\xfe{"),
        (RAG, b"\x80"),
        (IN_CONFIG, b"["),
        (IN_CONFIG, b'{"chat_template": 7}'),
        (IN_CONFIG, b'{"chat_template": ["x"]}'),
        (IN_CONFIG, b'{"chat_template": [{"name": "x"}]}'),
        (IN_CONFIG, b'{"chat_template": {"x": null}}'),
        (IN_PROCESSOR, b'{"chat_template": true}'),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CorruptError, match=Path(name).name):
        open_chat_template(tmp_path)


def test_a_copy_of_a_tokenizer_has_the_files_of_its_templates(tmp_path: Path) -> None:
    write(tmp_path, {IN_JINJA: "a", TOOL_USE: "b", IN_PROCESSOR: {"chat_template": "c"}})
    (tmp_path / "additional_chat_templates" / "._tool_use.jinja").write_bytes(b"\x00\x05\x16\x07")
    names = [path.relative_to(tmp_path).as_posix() for path in tokenizer_files(tmp_path)]
    assert names == [TOOL_USE, IN_JINJA, IN_PROCESSOR, "tokenizer.json", IN_CONFIG]
