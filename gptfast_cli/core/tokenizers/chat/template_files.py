"""Chat templates of a model's folder, their variables, and Llama 2's format.

Jinja files take precedence over tokenizer_config.json, as in transformers; a processor's chat_template.json is used if
the tokenizer has none. Most models have one template, some have several by name: `default`, `tool_use`, ...

Variables are the texts of special tokens, including roles of the model's own, such as image_token.

Llama 2's format is that of Meta's code (github.com/meta-llama/llama, generation.py: chat_completion): the system
message is a part of the first user message, both stripped as one; each exchange stands between BOS and EOS.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gptfast_cli.core.errors import CorruptError, NotFoundError, UsageError
from gptfast_cli.core.fields import read_fields
from gptfast_cli.core.tokenizers.chat.template import ChatTemplate, TemplateSource
from gptfast_cli.core.tokenizers.declarations import SPECIAL_TOKENS_MAP, TOKENIZER_CONFIG, damaged
from gptfast_cli.core.tokenizers.tokenizer import Tokenizer

DEFAULT = "default"
"""Name of a single template, and of the one to use by default."""

_WITH_TOOLS = "tool_use"  # the name by which transformers finds the template for conversations with tools

JINJA_FILE = "chat_template.jinja"
JINJA_FOLDER = "additional_chat_templates"
PROCESSOR_FILE = "chat_template.json"

_KEY = "chat_template"


def read_templates(folder: Path) -> dict[str, str]:
    """Chat templates of a folder by name. Raises CorruptError for a malformed file."""
    return _in_jinja_files(folder) or _in_json(folder / TOKENIZER_CONFIG) or _in_json(folder / PROCESSOR_FILE)


def template_files(folder: Path) -> tuple[Path, ...]:
    """The files of a folder that hold nothing but chat templates."""
    files = (*_named_files(folder), folder / JINJA_FILE, folder / PROCESSOR_FILE)
    return tuple(file for file in files if file.is_file())


def read_template(file: Path) -> str:
    """The text of a Jinja file. Raises CorruptError if it is not UTF-8."""
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
    files = (folder / JINJA_FOLDER).glob("[!.]*.jinja")  # not macOS's ._ files
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


def read_variables(folder: Path) -> dict[str, str]:
    """Texts of a folder's declared special tokens by role, with the precedence of `read_declarations`.

    Raises CorruptError if a file is not a JSON object.
    """
    declared = _values(folder / TOKENIZER_CONFIG)
    if "added_tokens_decoder" not in declared:
        declared |= _values(folder / SPECIAL_TOKENS_MAP)
    return dict(_roles(declared)) | dict(_own_roles(declared))


def _values(file: Path) -> dict[str, Any]:
    return dict(read_fields(file).values) if file.is_file() else {}


def _roles(declared: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in declared.items():
        if name.endswith("_token"):
            yield from _token(name, value)


def _own_roles(declared: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The model's own roles, if declared as a map; a list declares tokens without a role."""
    own = declared.get("extra_special_tokens") or declared.get("additional_special_tokens")
    if isinstance(own, Mapping):
        for name, value in own.items():
            yield from _token(name, value)


def _token(name: str, value: object) -> Iterator[tuple[str, str]]:
    match value:
        case str(text) | {"content": str(text)}:
            yield name, text


_TEMPLATE = r"""
{%- set system = messages[0].content if messages[0].role == "system" else none %}
{%- set turns = messages if system is none else messages[1:] %}
{%- if not turns %}
    {{- raise_exception("A message of the user must follow that of the system.") }}
{%- endif %}
{%- for message in turns %}
    {%- if message.role != ("user" if loop.index is odd else "assistant") %}
        {{- raise_exception("After an optional system message, user and assistant must alternate, the user first.") }}
    {%- endif %}
    {%- if message.role == "assistant" %}
        {{- " " ~ message.content | trim ~ " " ~ eos_token }}
        {%- if loop.last and add_generation_prompt %}
            {{- raise_exception("The last message must be the user's.") }}
        {%- endif %}
    {%- else %}
        {%- set opening = "" if system is none or not loop.first else "<<SYS>>\n" ~ system ~ "\n<</SYS>>\n\n" %}
        {{- bos_token ~ after_bos ~ "[INST] " ~ (opening ~ message.content) | trim ~ " [/INST]" }}
    {%- endif %}
{%- endfor %}"""


def llama_2_template(folder: Path, tokenizer: Tokenizer | None) -> ChatTemplate:
    """Llama 2's format with the special tokens of a model's folder, by default `<s>` and `</s>`.

    `tokenizer`: encodes the rendered text, if there is one
    """
    variables = {"bos_token": "<s>", "eos_token": "</s>"} | read_variables(folder)
    variables["after_bos"] = "" if tokenizer is None else _after_bos(tokenizer, variables["bos_token"])
    return ChatTemplate(TemplateSource(_TEMPLATE, "Llama 2's format", variables))


def _after_bos(tokenizer: Tokenizer, bos: str) -> str:
    """A space if `[INST]` after BOS is otherwise encoded differently from the start of a text."""
    first = tokenizer.encode("[INST]", bos=False)
    behind = {gap: tokenizer.encode(f"{bos}{gap}[INST]", bos=False)[1:] for gap in ("", " ")}
    return " " if behind[""] != first == behind[" "] else ""


def open_chat_template(folder: Path, name: str | None = None) -> ChatTemplate | None:
    """The chat template of a name, or the default one; None if no name is given and the folder has no template.

    Raises UsageError with the known names for an unknown name or a missing default, CorruptError for a damaged file.
    """
    templates = read_templates(folder)
    if not templates and name is None:
        return None
    taken = DEFAULT if name is None else name
    if taken not in templates:
        raise _no_such_template(name, folder, templates)
    with_tools = templates.get(_WITH_TOOLS) if name is None else None
    return ChatTemplate(TemplateSource(templates[taken], str(folder), read_variables(folder), with_tools))


def read_chat_template(file: Path, folder: Path) -> ChatTemplate:
    """A chat template in a Jinja file, with the special tokens of a folder. Raises NotFoundError, CorruptError."""
    if not file.is_file():
        raise NotFoundError(f"{file}: there is no such file.", "Name a Jinja file, or a template of the model.")
    return ChatTemplate(TemplateSource(read_template(file), str(file), read_variables(folder)))


def _no_such_template(name: str | None, folder: Path, templates: dict[str, str]) -> UsageError:
    if not templates:
        return UsageError(f"{name}: is no file, and {folder} has no chat templates.", "Give a Jinja file.")
    what = "none of its chat templates is the default" if name is None else f"has no chat template called {name!r}"
    return UsageError(f"{folder}: {what}.", f"Name one with --chat-template: {', '.join(sorted(templates))}.")
