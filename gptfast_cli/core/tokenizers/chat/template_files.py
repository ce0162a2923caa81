"""Where a model's folder keeps its chat templates: two layouts of transformers, and one of its processors.

Jinja files come first and hide what tokenizer_config.json says, as in transformers; a processor's chat_template.json is
read where the tokenizer has none. Most models have one template, some have several by name: `default`, `tool_use`, ...
"""

from pathlib import Path
from typing import Any

from gptfast_cli.core.errors import CorruptError
from gptfast_cli.core.fields import read_fields
from gptfast_cli.core.tokenizers.declarations import TOKENIZER_CONFIG, damaged

DEFAULT = "default"
"""The name of a template that is the only one, and of the one to take where none is named."""

JINJA_FILE = "chat_template.jinja"
JINJA_FOLDER = "additional_chat_templates"
PROCESSOR_FILE = "chat_template.json"

_KEY = "chat_template"


def read_templates(folder: Path) -> dict[str, str]:
    """The texts of a folder's chat templates by name; none where it has none.

    Raises CorruptError where a file is neither a template nor a JSON object that holds one.
    """
    return _in_jinja_files(folder) or _in_json(folder / TOKENIZER_CONFIG) or _in_json(folder / PROCESSOR_FILE)


def template_files(folder: Path) -> tuple[Path, ...]:
    """The files of a folder that hold chat templates and nothing else, by name."""
    files = (*_named_files(folder), folder / JINJA_FILE, folder / PROCESSOR_FILE)
    return tuple(file for file in files if file.is_file())


def read_template(file: Path) -> str:
    """The text of a Jinja file; raises CorruptError where it is not UTF-8."""
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CorruptError(f"{file}: is no template: {error}", "A chat template is a text file in UTF-8.") from error


def _in_jinja_files(folder: Path) -> dict[str, str]:
    templates = {}
    if (folder / JINJA_FILE).is_file():
        templates[DEFAULT] = read_template(folder / JINJA_FILE)
    return templates | {file.stem: read_template(file) for file in _named_files(folder)}


def _named_files(folder: Path) -> list[Path]:
    files = (folder / JINJA_FOLDER).glob("[!.]*.jinja")  # not the ._ files that macOS leaves on other disks
    return sorted(file for file in files if file.is_file())


def _in_json(file: Path) -> dict[str, str]:
    if not file.is_file():
        return {}
    match read_fields(file).values.get(_KEY):
        case None:
            return {}
        case str(text):
            return {DEFAULT: text}
        case dict(templates) if all(isinstance(text, str) for text in templates.values()):
            return templates
        case [*entries]:
            return dict(_named_entry(file, entry) for entry in entries)
    raise damaged(file, f"{_KEY} is neither a template nor a list of them")


def _named_entry(file: Path, entry: Any) -> tuple[str, str]:  # noqa: ANN401 (what JSON can hold)
    match entry:
        case {"name": str(name), "template": str(text)}:
            return name, text
    raise damaged(file, f"{_KEY} has an entry without a name or a template")
