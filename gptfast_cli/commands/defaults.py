"""The settings file: defaults of the commands' options, `[generate] temperature = 0.5`, one table for each command.

The precedence is flag > environment > settings file > built-in default; typer keeps it where it is given these values
as its `default_map`.
"""

import inspect
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from gptfast_cli.commands import COMMANDS
from gptfast_cli.core.errors import UsageError
from gptfast_cli.tree import Command

_MAX_FILE_BYTES = 16_000  # the reader takes quadratic time for some files


def load_defaults(path: Path) -> dict[str, dict[str, Any]]:
    """Options set in the file, by command; empty if there is no file.

    Raises UsageError for a file that is not TOML, and for an unknown table or key.
    """
    import tomllib

    try:
        with path.open("rb") as file:
            content = file.read(_MAX_FILE_BYTES + 1)
    except OSError:  # there is none, or not for this person
        return {}
    if len(content) > _MAX_FILE_BYTES:
        raise UsageError(f"The settings file {path} has more than {_MAX_FILE_BYTES // 1000} kB.", "Shorten it.")
    try:
        tables = tomllib.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:  # a number of thousands of digits is a plain ValueError
        raise UsageError(f"The settings file {path} is not valid TOML.\n{error!s:.200}") from error
    commands = {command.name: command for command in COMMANDS}
    return {name: _options(path, commands.get(name), name, table) for name, table in tables.items()}


def _options(path: Path, command: Command | None, name: str, table: object) -> dict[str, Any]:
    if command is None or not isinstance(table, dict):
        known = ", ".join(f"[{command.name}]" for command in COMMANDS)
        raise UsageError(f"The settings file {path} sets {name!r:.60}, which is not a command.", f"Tables: {known}.")
    options = {key.replace("-", "_"): value for key, value in table.items()}
    for key in options:
        if key not in inspect.signature(command.function).parameters:
            raise UsageError(
                f"The settings file {path} sets {key!r:.60} in [{name}], which is not an option of `gptfast {name}`.",
                f"gptfast {name} --help lists the options.",
            )
    kinds = get_type_hints(command.function)
    return {key: _as_typed(kinds[key], value, f"{path} sets {key} in [{name}]") for key, value in options.items()}


def _as_typed(kind: Any, value: object, where: str) -> object:  # noqa: ANN401  # an annotation
    """A TOML value as text for the option's parser, or a boolean for a flag; UsageError for any other."""
    kinds = (kind, *get_args(kind))  # of an option that may be left out, the second is the first of its union
    if bool in kinds:
        if isinstance(value, bool):
            return value
        raise UsageError(f"The settings file {where}: it must be true or false, not {value!r}.")
    items = value if isinstance(value, list) else [value]
    if not all(isinstance(item, str | int | float) for item in items):
        raise UsageError(f"The settings file {where}: it must be a text or a number, not {value!r}.")
    texts = [str(item).lower() if isinstance(item, bool) else str(item) for item in items]
    return texts if any(get_origin(each) is list for each in kinds) else ",".join(texts)
