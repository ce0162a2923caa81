"""The command tree of typer with our help: groups of options, examples, and the origin of each option's value.

A command is a function. Its parameters are options, or frozen dataclasses whose fields are the options of a help panel,
such as `DeviceOptions`: `command` expands these to single options for typer.
"""

import inspect
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, fields, is_dataclass
from typing import Annotated, Any, Final, get_args

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption

from gptfast_cli.core.settings import settings_file
from gptfast_cli.options import Invocation, OutsideValue

_ARGUMENTS: Final = "Arguments"
_OPTIONS: Final = "Options"
_COMMANDS: Final = "Commands"
_EXAMPLES: Final = "Examples"
_HELP_NAMES: Final = ["-h", "--help"]


class _Help:
    """Help in boxes on a terminal and as plain text elsewhere: -h beside --help, and no type for a flag."""

    rich_markup_mode: Any
    epilog: str | None

    def get_help_option_names(self, _: Any) -> list[str]:  # noqa: ANN401  # typer has no public name for it
        return _HELP_NAMES

    def get_params(self, ctx: Any) -> list[Any]:  # noqa: ANN401
        parameters: list[Any] = super().get_params(ctx)  # type: ignore[misc]
        for parameter in parameters:
            if isinstance(parameter, TyperOption) and parameter.is_flag:
                parameter.metavar = ""
        return parameters

    def format_help(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401
        if self.rich_markup_mode is None:
            write_help(self, ctx, formatter)
            return
        examples, self.epilog = self.epilog, None  # which typer would double-space and colour
        super().format_help(ctx, formatter)  # type: ignore[misc]
        self.epilog = examples
        if examples is not None:
            typer.echo(" " + examples.replace("\n\n", "\n   ") + "\n")


class GptFastCommand(_Help, TyperCommand):
    """A command that records, for error messages, its options and which of them were set outside the command line."""

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401
        if isinstance(ctx.obj, Invocation):
            ctx.obj.flags = frozenset(flag for parameter in self.params for flag in parameter.opts)
            ctx.obj.outside_values = tuple(
                OutsideValue(parameter.opts[0], ctx.params[parameter.name], origin)
                for parameter in self.params
                if (origin := origin_of(ctx, parameter)) is not None
            )
        return super().invoke(ctx)


class GptFastGroup(_Help, TyperGroup):
    """The program itself, with the same help."""


@dataclass(frozen=True, slots=True)
class Command:
    """One command: its name, the function whose parameters are its options, and the examples that end its help."""

    name: str
    function: Callable[..., Any]
    kind: type[GptFastCommand] = GptFastCommand
    examples: tuple[str, ...] = ()


def epilog_of(examples: tuple[str, ...]) -> str | None:
    """Examples as an epilog of typer: one paragraph each."""
    return "\n\n".join([f"{_EXAMPLES}:", *examples]) if examples else None


def command(
    name: str, *examples: str, kind: type[GptFastCommand] = GptFastCommand
) -> Callable[[Callable[..., None]], Command]:
    """A decorator that makes a command of a function, expanding parameters that are dataclasses of options."""
    return lambda function: Command(name, _with_fields(function), kind, examples)


def _with_fields(function: Callable[..., None]) -> Callable[..., None]:
    """The function with one parameter for each field of the dataclasses among its parameters."""
    signature = inspect.signature(function)
    groups: dict[str, Any] = {
        each.name: each.annotation for each in signature.parameters.values() if is_dataclass(each.annotation)
    }
    parameters: list[inspect.Parameter] = []
    for parameter in signature.parameters.values():
        if parameter.name in groups:
            parameters.extend(
                inspect.Parameter(
                    field.name,
                    parameter.KEYWORD_ONLY,
                    default=field.default,
                    annotation=_in_panel(field.type, parameter.annotation),
                )
                for field in fields(parameter.annotation)
            )
        else:
            parameters.append(parameter)

    def expanded(**values: object) -> None:
        for name, group in groups.items():
            values[name] = group(**{field.name: values.pop(field.name) for field in fields(group)})
        function(**values)

    expanded.__doc__ = function.__doc__
    expanded.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    expanded.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return expanded


def _in_panel(annotation: Any, group: Any) -> Any:  # noqa: ANN401  # annotations
    """The annotation of an option, in the help panel of its group unless it has one of its own."""
    kind, option = get_args(annotation)
    option = copy(option)
    option.rich_help_panel = option.rich_help_panel or getattr(group, "panel", None)
    return Annotated[kind, option]


def write_help(command: Any, context: Any, formatter: Any) -> None:  # noqa: ANN401  # typer's
    """Write usage, description, arguments, options by group, the commands of a group, and examples."""
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
    _write_examples(command.epilog, formatter)


def _write_examples(epilog: str | None, formatter: Any) -> None:  # noqa: ANN401
    if epilog:
        title, *examples = epilog.split("\n\n")
        with formatter.section(title.removesuffix(":")):
            for example in examples:
                formatter.write(f"{'':>{formatter.current_indent}}{example}\n")


def _purpose(text: str | None) -> str:
    """The first paragraph of a command's description, in one line."""
    return " ".join((text or "").partition("\n\n")[0].split())


def origin_of(context: Any, parameter: Any) -> str | None:  # noqa: ANN401
    """What set an option outside the command line: `GPTFAST_MODEL`, `[generate] in FILE`; None: the command line."""
    source = context.get_parameter_source(parameter.name)
    match source.name if source is not None else None:
        case "ENVIRONMENT":
            return str(parameter.envvar)
        case "DEFAULT_MAP":
            return f"[{context.info_name}] in {settings_file()}"
        case _:
            return None
