"""A command's help as plain text: all of every description, and options in the groups that the boxed help has."""

from typing import Any, Final

from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption

_ARGUMENTS: Final = "Arguments"
_OPTIONS: Final = "Options"
_COMMANDS: Final = "Commands"


def write_help(command: TyperCommand | TyperGroup, context: Any, formatter: Any) -> None:  # noqa: ANN401  # typer's
    """Write usage, description, arguments, options by group, and the commands of a group."""
    command.format_usage(context, formatter)
    command.format_help_text(context, formatter)
    groups: dict[str, list[tuple[str, str]]] = {_ARGUMENTS: [], _OPTIONS: []}
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is None:
            continue
        name, explained = record
        if isinstance(parameter, TyperArgument):
            groups[parameter.rich_help_panel or _ARGUMENTS].append((name.partition(" ")[0], explained))
        elif isinstance(parameter, TyperOption):
            groups.setdefault(parameter.rich_help_panel or _OPTIONS, []).append((name, explained))
    if isinstance(command, TyperGroup):
        groups[_COMMANDS] = [(name, _purpose(each.help)) for name, each in command.commands.items() if not each.hidden]
    for title, rows in groups.items():
        if rows:
            with formatter.section(title):
                formatter.write_dl(rows)


def _purpose(text: str | None) -> str:
    """The first paragraph of a command's description, in one line."""
    return " ".join((text or "").partition("\n\n")[0].split())
