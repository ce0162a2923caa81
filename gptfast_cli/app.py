"""The command tree, and `main`, which turns results, errors and signals into exit codes."""

import os
import re
import signal
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, NoReturn, TextIO

import typer

from gptfast_cli.commands import COMMANDS
from gptfast_cli.commands.defaults import load_defaults
from gptfast_cli.completion.answer import VARIABLE, answer_shell
from gptfast_cli.completion.scripts import SCRIPTS, Shell
from gptfast_cli.core.distributed.rank import PARENT, TORCHRUN, is_rank, leave_failure
from gptfast_cli.core.errors import ExitCode, GptFastError, NotFoundError, UsageError
from gptfast_cli.core.settings import load_settings, settings_file
from gptfast_cli.numbers import NumberError
from gptfast_cli.options import DebugOption, Invocation, OutsideValue, complete_model, name_option
from gptfast_cli.render.failure import named, write_error
from gptfast_cli.render.numbers import program_version
from gptfast_cli.render.terminal import shows_escapes
from gptfast_cli.tree import GptFastGroup, epilog_of, origin_of

PROGRAM = "gptfast"
_EXAMPLES = (
    "gptfast download meta-llama/Llama-2-7b-chat-hf",
    "gptfast quantize --mode int4 --groupsize 32",
    'gptfast generate "Once upon a time"',
)


def main() -> NoReturn:
    """Run the command line that the process was started with, and end the process with the contract's exit code."""
    sys.exit(run_process())


def run_process() -> int:
    """Run the command line that the process was started with; returns the contract's exit code."""
    signal.signal(signal.SIGTERM, _terminate)
    if PARENT in os.environ or TORCHRUN in os.environ:
        from gptfast_cli.core.distributed.rank import end_with_parent

        end_with_parent()
    _never_fail_to_encode(sys.stdout, sys.stderr)
    # PyTorch's OpenMP threads spin for 0.2 ms after their work, not for 5: they would keep the engine's from running
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    if VARIABLE in os.environ:
        end = sys.argv[1] if sys.argv[1:] else None
        sys.stdout.write(answer_shell(command_tree(plain=True), os.environ[VARIABLE], end))
        return ExitCode.OK
    return _run(sys.argv[1:])


def command_tree(*, plain: bool) -> typer.Typer:
    """All commands and their options; the help of a plain tree is text without boxes, colours or escapes."""
    tree = typer.Typer(rich_markup_mode=None if plain else "rich", pretty_exceptions_enable=False, add_completion=False)
    tree.callback(invoke_without_command=True, cls=GptFastGroup, epilog=epilog_of(_EXAMPLES))(_root)
    for command in COMMANDS:
        tree.command(command.name, cls=command.kind, epilog=epilog_of(command.examples))(command.function)
    return tree


def _complete_stored() -> list[str]:
    from gptfast_cli.core.checkpoints.downloads import bucket_paths, cached_repos
    from gptfast_cli.core.checkpoints.store import open_store

    settings = load_settings()
    stored = [entry.name for entry in open_store(settings).entries()]
    return [*stored, *cached_repos(settings.hf_cache), *(str(path) for path, _ in bucket_paths(settings.home))]


def _root(
    context: typer.Context,
    *,
    list_: Annotated[bool, typer.Option("--list", help="List the local models.")] = False,
    show: Annotated[
        str | None, name_option("MODEL", complete_model, "Print a model's shape, memory, license and drafts.")
    ] = None,
    use: Annotated[str | None, name_option("MODEL", complete_model, "Make a model the current one.")] = None,
    remove: Annotated[
        str | None,
        name_option(
            "NAME",
            _complete_stored,
            "Remove a model from the store, the Hugging Face cache or the S3 downloads, after confirmation.",
        ),
    ] = None,
    prune: Annotated[
        bool,
        typer.Option("--prune", help="Delete what interrupted runs and older versions left, after confirmation."),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="With --remove or --prune: no confirmation.")] = False,
    show_settings: Annotated[
        bool,
        typer.Option("--show-settings", help="Print folders, environment variables and the settings file's values."),
    ] = False,
    json: Annotated[
        bool, typer.Option("--json", help="With --list, --show, --show-settings or --version: print one JSON document.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print version and commit, the version of PyTorch, and the backends.")
    ] = False,
    show_completion: Annotated[
        Shell | None,
        typer.Option(metavar="SHELL", help="Print the completion script for bash, zsh, fish or powershell."),
    ] = None,
    debug: DebugOption = False,
) -> None:
    """Fast text generation on plain PyTorch, and a judge of draft models whose predictions are checked by real runs."""
    if version:
        _write_version(json=json)
    elif list_ or show_settings or prune or (show, use, remove) != (None, None, None):
        _manage(list_=list_, show=show, use=use, remove=remove, prune=prune, yes=yes, json=json)
    elif show_completion is not None:
        typer.echo(SCRIPTS[show_completion], nl=False)
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())
    else:
        context.default_map = load_defaults(settings_file())
        return
    raise typer.Exit


def _write_version(*, json: bool) -> None:
    from gptfast_cli.core.versions import find_versions

    versions = find_versions(load_settings())
    if json:
        from gptfast_cli.render.json import write_document

        write_document("gptfast.version/1", versions, sys.stdout)
        return
    typer.echo(program_version(versions.gptfast, versions.commit))
    typer.echo(f"torch {versions.torch or 'is not installed'}, Python {versions.python}")
    for backend in versions.backends:
        typer.echo(f"backend {backend.name}: {'' if backend.available else 'not available. '}{backend.state}")


def _manage(
    *, list_: bool, show: str | None, use: str | None, remove: str | None, prune: bool, yes: bool, json: bool
) -> None:
    """Run the one of the root's options that is about models or settings."""
    from gptfast_cli.commands import store

    if list_:
        store.list_models(json=json)
    elif show is not None:
        store.show_model(show, json=json)
    elif use is not None:
        store.use_model(use)
    elif remove is not None:
        store.remove_model(remove, yes=yes)
    elif prune:
        store.prune(yes=yes)
    else:
        store.show_settings(load_defaults(settings_file()), json=json)


def _run(arguments: list[str]) -> int:
    invocation = Invocation()
    tree = command_tree(plain=not shows_escapes(sys.stdout))
    try:
        # not standalone: typer then raises what it would otherwise print in boxes; an Exit's code is returned
        code = tree(arguments, prog_name=PROGRAM, standalone_mode=False, obj=invocation)
        sys.stdout.flush()
    except (KeyboardInterrupt, typer.Abort):
        return ExitCode.INTERRUPTED
    except BrokenPipeError:
        _discard_output()
        return ExitCode.FAILURE
    except typer.TyperException as error:
        return _fail(_usage_error(error), invocation)
    except Exception as error:  # noqa: BLE001  # the last stop: every error becomes a few lines and an exit code
        if _is_interrupt(error):
            return ExitCode.INTERRUPTED
        if isinstance(error, OSError):
            _discard_output()
        return _fail(error, invocation)
    return code or ExitCode.OK


def _fail(error: Exception, invocation: Invocation) -> ExitCode:
    if invocation.debug:
        traceback.print_exception(error)
    explained = _with_origins(named(error, load_settings().home, invocation.flags), invocation.outside_values)
    if not leave_failure(explained):
        write_error(explained, (sys.__stderr__ if is_rank() else None) or sys.stderr)
    return explained.exit_code


def _usage_error(error: typer.TyperException) -> UsageError:
    """A usage error of typer in our words; a value from outside the command line is named with its origin."""
    context, parameter = getattr(error, "ctx", None), getattr(error, "param", None)
    message = error.format_message()
    if context is None:
        return UsageError(message, f"{PROGRAM} --help")
    if parameter is not None and isinstance(error, NumberError):
        message = f"{parameter.opts[0]} {error.message}"
    if parameter is not None and (origin := origin_of(context, parameter)) is not None:
        message += f"\nIt is set by {origin}."
    return UsageError(message, f"{context.command_path} --help")


def _with_origins(error: GptFastError, values: Sequence[OutsideValue]) -> GptFastError:
    """The error, with the origin of each value in it that comes from outside the command line."""
    if isinstance(error, UsageError | NotFoundError):
        for each in values:
            named_value = rf"(?<!\w){re.escape(str(each.value))}(?!\w)"
            if re.search(named_value, error.message) or each.flag in error.message.split():
                error.message += f"\n{each.flag} {each.value} is set by {each.origin}."
    return error


def _is_interrupt(error: BaseException | None) -> bool:
    """Whether an error comes from a Ctrl-C: a library that is being loaded may turn it into one of its own."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def _terminate(*_: object) -> NoReturn:
    """Unwind as for any exception, so that half-written outputs are cleaned up."""
    raise SystemExit(ExitCode.TERMINATED)


def _never_fail_to_encode(*streams: TextIO) -> None:
    """In a locale without some character, show a `?` for it; a program should not die of an accent."""
    for stream in streams:
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def _discard_output() -> None:
    """Let the interpreter's last flush of stdout go nowhere: its reader has left, or its disk is full."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
