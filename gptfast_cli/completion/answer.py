"""What may come next on a command line: commands, options and their values, and paths, which the shell knows best."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import typer
from typer.core import TyperArgument, TyperGroup, TyperOption

VARIABLE = "_GPTFAST_COMPLETE"


class Paths(StrEnum):
    """Which paths the shell should offer; a parameter's `autocompletion` asks for them with `(incomplete, Paths.…)`."""

    NONE = "none"
    FILES = "files"
    FOLDERS = "folders"


@dataclass(frozen=True, slots=True)
class Answer:
    """What fits in the place of a word: whole words, each with its help, and paths."""

    values: tuple[tuple[str, str], ...] = ()
    paths: Paths = Paths.NONE


def answer_shell(tree: typer.Typer, line: str, end: str | None) -> str:
    """The answer to a shell's question, as the package describes it; whatever fails, it is an empty one."""
    try:
        answer = complete(tree, split_line(line)[1:])
        # of `org/name:int` bash, which breaks words at colons too, replaces `int`, and keeps nine characters
        n_kept = 0 if end is None else len(split_line(line.removesuffix(end))[-1])
    except Exception:  # noqa: BLE001  # an error would be written into the line that is being typed
        answer, n_kept = Answer(), 0
    values = [f"{value[n_kept:]}\t{' '.join(explained.split())}\n" for value, explained in answer.values]
    return "".join([f"{answer.paths}\n", *values])


def split_line(line: str) -> list[str]:
    """The words up to the cursor, without their quotes; the last one is being typed, and is empty after a blank."""
    lexer = shlex.shlex(f"{line}|", posix=True)  # the mark tells a blank between words from one that is quoted
    lexer.whitespace_split = True
    lexer.commenters = ""
    words: list[str] = []
    try:
        words.extend(lexer)
    except ValueError:  # a quote is still open
        words.append(lexer.token)
    words[-1] = words[-1][:-1]
    return words


def complete(tree: typer.Typer, words: Sequence[str]) -> Answer:
    """What fits in the place of the last word, after those before it; the program's name is none of them."""
    *typed, word = words
    place = _Place(typer.Context(typer.main.get_group(tree)))
    for earlier in typed:
        if not place.take(earlier):
            return Answer()
    return place.answer(word)


@dataclass(slots=True)
class _Place:
    """The place after some words of a command line."""

    context: typer.Context
    waiting: TyperOption | None = None  # for its value, which comes next
    given: list[TyperOption] = field(default_factory=list)
    n_arguments: int = 0
    options_are_over: bool = False

    def take(self, word: str) -> bool:
        """Move behind one word more; False where there is no such command."""
        group = self.context.command
        if self.waiting is not None:
            self.waiting = None
        elif word == "--":
            self.options_are_over = True
        elif self._is_option(word):
            self._take_option(word)
        elif isinstance(group, TyperGroup):
            if word not in group.commands:
                return False
            self.context, self.given = typer.Context(group.commands[word]), []
        else:
            self.n_arguments += 1
        return True

    def answer(self, word: str) -> Answer:
        command = self.context.command
        name, joined, value = word.partition("=")
        if self.waiting is not None:
            return self._values(self.waiting, word)
        if self._is_option(word) and joined:
            return self._values(self._option(name), value, prefix=f"{name}=")
        if self._is_option(word):
            return Answer(self._free_options(word))
        if isinstance(command, TyperGroup):
            return Answer(_commands(command, word))
        arguments = [parameter for parameter in command.params if isinstance(parameter, TyperArgument)]
        return self._values(next(iter(arguments[self.n_arguments :]), None), word)

    def _is_option(self, word: str) -> bool:
        return word.startswith("-") and not self.options_are_over

    def _take_option(self, word: str) -> None:
        name, joined, _ = word.partition("=")
        option = self._option(name if name.startswith("--") else f"-{name[-1:]}")  # of -qm it is -m that waits
        if option is not None:
            self.given.append(option)
            self.waiting = None if joined or option.is_flag or option.count else option

    def _options(self) -> list[TyperOption]:
        parameters = self.context.command.get_params(self.context)
        return [parameter for parameter in parameters if isinstance(parameter, TyperOption) and not parameter.hidden]

    def _option(self, name: str) -> TyperOption | None:
        return next((option for option in self._options() if name in _names(option)), None)

    def _free_options(self, word: str) -> tuple[tuple[str, str], ...]:
        free = [option for option in self._options() if option.multiple or option not in self.given]
        return tuple((name, option.help or "") for option in free for name in _spellings(option, word))

    def _values(self, parameter: TyperOption | TyperArgument | None, word: str, prefix: str = "") -> Answer:
        items = parameter.shell_complete(self.context, word) if parameter is not None else []
        paths = [item.help for item in items if isinstance(item.help, Paths)]
        values = [(f"{prefix}{item.value}", item.help or "") for item in items if not isinstance(item.help, Paths)]
        return Answer(tuple(values), paths[0] if paths else Paths.NONE)


def _commands(group: TyperGroup, word: str) -> tuple[tuple[str, str], ...]:
    return tuple(
        (name, command.get_short_help_str(limit=100))
        for name, command in group.commands.items()
        if name.startswith(word) and not command.hidden
    )


def _spellings(option: TyperOption, word: str) -> list[str]:
    """The first name of an option that begins with the word, of `--chat` and of `--no-chat`."""
    both = ([name for name in names if name.startswith(word)] for names in (option.opts, option.secondary_opts))
    return [names[0] for names in both if names]


def _names(option: TyperOption) -> list[str]:
    return [*option.opts, *option.secondary_opts]
