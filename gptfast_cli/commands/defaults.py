"""The settings file: defaults of the commands' options, `[generate] temperature = 0.5`, one table for each command.

The precedence is flag > environment > settings file > built-in default; typer keeps it where it is given these values
as its `default_map`.
"""

import inspect
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gptfast_cli.commands import COMMANDS, Command
from gptfast_cli.core.errors import UsageError


def settings_file(environment: Mapping[str, str] = os.environ) -> Path:
    """Where the settings file is looked for: ~/.config/gptfast/config.toml, XDG_CONFIG_HOME respected."""
    folder = Path(environment.get("XDG_CONFIG_HOME") or "~/.config").expanduser()
    return folder / "gptfast" / "config.toml"


def load_defaults(path: Path) -> dict[str, dict[str, Any]]:
    """The options set in the file, by command; empty where there is no file.

    Raises UsageError for a file that is not TOML, and for a table or key that is no command or option.
    """
    import tomllib

    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"The settings file {path} is not valid TOML.\n{error}") from error
    commands = {command.name: command for command in COMMANDS}
    return {name: _options(path, commands.get(name), name, table) for name, table in tables.items()}


def _options(path: Path, command: Command | None, name: str, table: object) -> dict[str, Any]:
    if command is None or not isinstance(table, dict):
        known = ", ".join(f"[{command.name}]" for command in COMMANDS)
        raise UsageError(f"The settings file {path} sets {name!r}, which is no command's table.", f"Tables: {known}.")
    options = {key.replace("-", "_"): value for key, value in table.items()}
    for key in options.keys() - inspect.signature(command.function).parameters.keys():
        raise UsageError(
            f"The settings file {path} sets {key!r} in [{name}], which `gptfast {name}` has no option for.",
            f"gptfast {name} --help lists the options.",
        )
    return options
