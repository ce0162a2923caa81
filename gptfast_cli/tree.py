"""The command tree of typer with our help, and where each option's value came from."""

from typing import Any, Final

from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption

from gptfast_cli.core.settings import settings_file
from gptfast_cli.options import Invocation, OutsideValue

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


_HELP_NAMES = ["-h", "--help"]


class GptFastCommand(TyperCommand):
    """A command whose help is whole in a pipe too, and whose invocation knows which options were set elsewhere."""

    def get_help_option_names(self, _: Any) -> list[str]:  # noqa: ANN401  # typer has no public name for it
        """-h beside --help."""
        return _HELP_NAMES

    def get_params(self, ctx: Any) -> list[Any]:  # noqa: ANN401
        """The parameters; a flag has no type to show."""
        return _without_types(super().get_params(ctx))

    def format_help(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401
        """Boxes on a terminal, text elsewhere."""
        if self.rich_markup_mode is None:
            write_help(self, ctx, formatter)
        else:
            super().format_help(ctx, formatter)

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401
        """Keep what errors are to name: the command's options, and values from the environment or the settings file."""
        if isinstance(ctx.obj, Invocation):
            ctx.obj.flags = frozenset(flag for parameter in self.params for flag in parameter.opts)
            ctx.obj.outside_values = tuple(
                OutsideValue(parameter.opts[0], ctx.params[parameter.name], origin)
                for parameter in self.params
                if (origin := origin_of(ctx, parameter)) is not None
            )
        return super().invoke(ctx)


class GptFastGroup(TyperGroup):
    """The program itself, with the same help."""

    def get_help_option_names(self, _: Any) -> list[str]:  # noqa: ANN401
        """-h beside --help."""
        return _HELP_NAMES

    def get_params(self, ctx: Any) -> list[Any]:  # noqa: ANN401
        """The parameters; a flag has no type to show."""
        return _without_types(super().get_params(ctx))

    def format_help(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401
        """Boxes on a terminal, text elsewhere."""
        if self.rich_markup_mode is None:
            write_help(self, ctx, formatter)
        else:
            super().format_help(ctx, formatter)


def origin_of(context: Any, parameter: Any) -> str | None:  # noqa: ANN401
    """What sets an option, where nobody typed it: `GPTFAST_MODEL`, or `[generate] in FILE`; None where it was typed."""
    source = context.get_parameter_source(parameter.name)
    match source.name if source is not None else None:
        case "ENVIRONMENT":
            return str(parameter.envvar)
        case "DEFAULT_MAP":
            return f"[{context.info_name}] in {settings_file()}"
        case _:
            return None


def _without_types(parameters: list[Any]) -> list[Any]:
    for parameter in parameters:
        if isinstance(parameter, TyperOption) and parameter.is_flag:
            parameter.metavar = ""
    return parameters
