"""Taking a chat template: one of a model's folder by its name, or a file that a person gives."""

from pathlib import Path

from gptfast_cli.core.errors import NotFoundError, UsageError
from gptfast_cli.core.tokenizers.chat.template import ChatTemplate, TemplateSource
from gptfast_cli.core.tokenizers.chat.template_files import DEFAULT, read_template, read_templates
from gptfast_cli.core.tokenizers.chat.variables import read_variables


def open_chat_template(folder: Path, name: str | None = None) -> ChatTemplate | None:
    """A chat template of a model's folder: the one of that name, or else its default.

    None where no name is given and the folder has no template. Raises UsageError with the names that there are where
    the name is none of them, or where none is given and none of several is the default; CorruptError where a file is
    damaged.
    """
    templates = read_templates(folder)
    if not templates and name is None:
        return None
    taken = DEFAULT if name is None else name
    if taken not in templates:
        raise _no_such_template(name, folder, templates)
    return ChatTemplate(TemplateSource(templates[taken], str(folder), read_variables(folder)))


def read_chat_template(file: Path, folder: Path) -> ChatTemplate:
    """A chat template in a Jinja file, with the special tokens of a model's folder.

    Raises NotFoundError where the file is not there, CorruptError where it is no text.
    """
    if not file.is_file():
        raise NotFoundError(f"{file}: there is no such file.", "Name a Jinja file, or a template of the model.")
    return ChatTemplate(TemplateSource(read_template(file), str(file), read_variables(folder)))


def _no_such_template(name: str | None, folder: Path, templates: dict[str, str]) -> UsageError:
    if not templates:
        return UsageError(f"{name}: is no file, and {folder} has no chat templates.", "Give a Jinja file.")
    what = "none of its chat templates is the default" if name is None else f"has no chat template called {name!r}"
    return UsageError(f"{folder}: {what}.", f"Name one with --chat-template: {', '.join(sorted(templates))}.")
