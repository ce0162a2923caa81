"""The grammar of a chat's lines: what is a message, what a command, and what Tab makes of a beginning."""

import difflib
from dataclasses import dataclass
from pathlib import Path

from gptfast_cli.core.errors import UsageError


@dataclass(frozen=True, slots=True)
class SlashCommand:
    """A command of the chat; `argument` is empty if it takes none, and in brackets where it may be left out."""

    name: str
    argument: str
    help: str


COMMANDS = (
    SlashCommand("help", "", "show this list"),
    SlashCommand("reset", "", "forget the conversation, but not the system message"),
    SlashCommand("system", "[TEXT]", "show the system message, or set it; - removes it"),
    SlashCommand("drop", "", "forget the oldest exchange"),
    SlashCommand("save", "FILE", "write the conversation as a row for --prompts-file"),
    SlashCommand("exit", "", "leave, as Ctrl-D does"),
)
_BY_NAME = {command.name: command for command in COMMANDS}


@dataclass(frozen=True, slots=True)
class Message:
    """A line that goes to the model."""

    text: str


@dataclass(frozen=True, slots=True)
class Call:
    """A line that is a command."""

    name: str
    argument: str


def parse(line: str) -> Message | Call:
    """What a line says: a command where it begins with a slash, and a message that begins with one where with two.

    Raises UsageError for a command that does not exist, or one with an argument too many or too few.
    """
    if line.startswith("//"):
        return Message(line[1:])
    if not line.startswith("/"):
        return Message(line)
    name, *rest = line[1:].split(maxsplit=1) or [""]
    argument = rest[0].strip() if rest else ""
    command = _BY_NAME.get(name)
    if command is None:
        raise UsageError(f"There is no command /{name}.", _next_try(name))
    if argument and not command.argument:
        raise UsageError(f"/{name} takes nothing after it.")
    if not argument and command.argument and not command.argument.startswith("["):
        raise UsageError(f"/{name} needs a {command.argument}.")
    return Call(name, argument)


def completions(line: str) -> list[str]:
    """The lines that a line could be the beginning of: commands, and for /save its files."""
    name, space, argument = line.partition(" ")
    if space:
        return [f"{name} {file}" for file in _files(argument)] if name == "/save" else []
    candidates = (f"/{command.name}{' ' if command.argument else ''}" for command in COMMANDS)
    return [candidate for candidate in candidates if line and candidate.startswith(line)]


def help_lines() -> list[str]:
    """What there is to know about the chat, within 80 columns."""
    calls = [f"/{command.name} {command.argument}" for command in COMMANDS]
    width = max(map(len, calls))
    return [
        *(f"{call:<{width}}  {command.help}" for call, command in zip(calls, COMMANDS, strict=True)),
        "",
        "Ctrl-C stops an answer; where you type, it clears the line.",
        "A line that ends with \\ goes on in the next one.",
        "To begin a message with a slash, write two.",
    ]


def _next_try(name: str) -> str:
    """The command that was probably meant, and how to say it to the model instead."""
    nearest = difflib.get_close_matches(name, _BY_NAME, n=1, cutoff=0.5)
    suggestion = f"Did you mean /{nearest[0]}?" if nearest else "/help lists the commands."
    return f"{suggestion} To begin a message with a slash, write two."


def _files(start: str) -> list[str]:
    """The files and folders whose path begins so, hidden ones only where the name begins with a dot."""
    folder, slash, name = start.rpartition("/")
    try:
        entries = sorted((Path(folder + slash) if slash else Path()).expanduser().iterdir())
    except OSError:
        return []
    return [
        f"{folder}{slash}{entry.name}{'/' if entry.is_dir() else ''}"
        for entry in entries
        if entry.name.startswith(name) and (name or not entry.name.startswith("."))
    ]
