"""`gptfast generate --interactive`: messages and slash commands in, answers out, until /exit or the end of the input.

At a terminal an error costs one line and the chat goes on; in a script the first error ends the program.
"""

import contextlib
import difflib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gptfast_cli.core.engine.chat import ContextFullError
from gptfast_cli.core.errors import GptFastError, UsageError
from gptfast_cli.core.jobs.chat import Chat, ChatRequest, Turn, open_chat
from gptfast_cli.render.chat import AnswerKeys, LineHistory, Lines, open_lines, write_turn
from gptfast_cli.render.failure import named, write_error
from gptfast_cli.render.progress import progress_view, show
from gptfast_cli.render.samples import SamplesView
from gptfast_cli.render.terminal import DIM, printable, styled


@dataclass(frozen=True, slots=True)
class SlashCommand:
    """A command of the chat; `argument` is empty if it takes none, and in brackets where it may be left out."""

    name: str
    argument: str
    help: str


COMMANDS = (
    SlashCommand("help", "", "show this list"),
    SlashCommand("reset", "", "clear the conversation, but not the system message"),
    SlashCommand("system", "[TEXT]", "show the system message, or set it; - removes it"),
    SlashCommand("drop", "", "drop the oldest exchange"),
    SlashCommand("save", "FILE", "write the conversation as a row for --prompts-file"),
    SlashCommand("exit", "", "exit, as Ctrl-D does"),
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
    """Parse a line: one that begins with a slash is a command; two slashes begin a message with one slash.

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
        raise UsageError(f"Unknown command: /{name}.", _next_try(name))
    if argument and not command.argument:
        raise UsageError(f"/{name} takes no argument.")
    if not argument and command.argument and not command.argument.startswith("["):
        raise UsageError(f"/{name} requires a {command.argument}.")
    return Call(name, argument)


def completions(line: str) -> list[str]:
    """Completions of a line: commands, and files after /save."""
    name, space, argument = line.partition(" ")
    if space:
        return [f"{name} {file}" for file in _files(argument)] if name == "/save" else []
    candidates = (f"/{command.name}{' ' if command.argument else ''}" for command in COMMANDS)
    return [candidate for candidate in candidates if line and candidate.startswith(line)]


def help_lines() -> list[str]:
    """The text of /help, within 80 columns."""
    calls = [f"/{command.name} {command.argument}" for command in COMMANDS]
    width = max(map(len, calls))
    return [
        *(f"{call:<{width}}  {command.help}" for call, command in zip(calls, COMMANDS, strict=True)),
        "",
        "Ctrl-C stops an answer; at the prompt it clears the line.",
        "A line that ends with \\ continues in the next one.",
        "To begin a message with a slash, write two.",
    ]


def _next_try(name: str) -> str:
    """The nearest command, and how to send the line as a message."""
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


_PROMPT, _CONTINUATION_PROMPT = "> ", ". "
_CONTINUATION = "\\"
_NO_SYSTEM = "-"


def interact(request: ChatRequest, first_message: str | None, *, quiet: bool) -> None:
    """Chat until the input ends, beginning with `first_message` where there is one."""
    with progress_view(sys.stderr, quiet=quiet) as show_progress:
        chat = show(open_chat(request), show_progress)
    history = LineHistory(request.settings.home / "chat_history")
    with chat, open_lines(history, completions) as lines:
        Dialogue(chat, lines, quiet=quiet).run(first_message)


class Dialogue:
    """A chat on the command line."""

    def __init__(self, chat: Chat, lines: Lines, *, quiet: bool) -> None:
        self._chat = chat
        self._lines = lines
        self._quiet = quiet
        self._is_script = not sys.stdin.isatty()
        self._unsent: str | None = None  # a message that found no room in the context
        self._has_exit_hint = False
        self._is_over = False

    def run(self, first_message: str | None) -> None:
        """Process lines until /exit or the end of the input."""
        self._note(f"{'' if self._is_script else '/help lists the commands, Ctrl-D exits. '}Seed {self._chat.seed}.")
        if first_message is not None:
            with self._errors_reported():
                self._send_first(first_message)
        while not self._is_over:
            line = self._read()
            if line.strip():
                self._lines.remember(line)
                with self._errors_reported():
                    self._handle(line)

    def _send_first(self, message: str) -> None:
        if not self._is_script:
            sys.stderr.write(f"{_PROMPT}{printable(message)}\n")
        self._lines.remember(message)
        self._send(message)

    def _read(self) -> str:
        """A line, or several where they go on; empty if Ctrl-C cleared it, and at the end of the input."""
        line = ""
        try:
            line = self._lines.read(_PROMPT)
            while line.endswith(_CONTINUATION):
                line = line.removesuffix(_CONTINUATION) + "\n"
                line += self._lines.read(_CONTINUATION_PROMPT)
        except EOFError:
            if not self._is_script:
                sys.stderr.write("\n")  # after the prompt
            self._is_over = True
        except KeyboardInterrupt:
            self._on_ctrl_c()
            line = ""
        return line.rstrip("\n")  # which pasted text often ends with

    @contextlib.contextmanager
    def _errors_reported(self) -> Iterator[None]:
        """At a terminal, report an error and go on with the next line; in a script, raise it."""
        try:
            yield
        except BrokenPipeError:
            raise  # nobody reads on
        except KeyboardInterrupt:
            self._on_ctrl_c()
        except (GptFastError, OSError, MemoryError, RuntimeError) as error:
            if self._is_script:
                raise
            write_error(named(error, flags=("--max-new-tokens", "--max-context")), sys.stderr)

    def _on_ctrl_c(self) -> None:
        """Ctrl-C while no answer is generated: clear the line; in a script, end."""
        if self._is_script:
            raise KeyboardInterrupt
        sys.stderr.write("\n")  # after what was typed
        if not self._has_exit_hint:
            self._has_exit_hint = True
            self._note("Ctrl-D or /exit exits.")

    def _handle(self, line: str) -> None:
        conversation = self._chat.conversation
        match parse(line):
            case Message(text):
                self._send(text)
            case Call("help"):
                _write_lines(help_lines())
            case Call("reset"):
                conversation.exchanges.clear()
                self._note("Conversation reset.")
                self._send_unsent()
            case Call("drop"):
                n_tokens = conversation.oldest_tokens
                conversation.drop_oldest()
                self._note(f"Dropped the oldest exchange ({n_tokens:,} tokens).")
                self._send_unsent()
            case Call("system", text):
                self._set_or_show_system(text)
            case Call("save", file):
                self._chat.save(Path(file).expanduser())
                self._note(f"Saved to {file}.")
            case Call("exit"):
                self._is_over = True

    def _send(self, message: str) -> None:
        self._unsent = None
        try:
            turn = self._answer(message)
        except ContextFullError:
            self._unsent = message
            raise
        if not turn.text:
            sys.stdout.write("\n")  # an empty answer has its line too
            sys.stdout.flush()
        if not self._quiet:
            write_turn(turn, sys.stderr)
        if turn.filled_the_context:
            n_tokens = self._chat.conversation.oldest_tokens
            self._note(f"The context is full: /drop the oldest exchange ({n_tokens:,} tokens) or /reset all.")
        if not self._is_script:
            sys.stderr.write("\n")  # between an answer and the next prompt
        elif turn.finish_reason == "interrupted":
            raise KeyboardInterrupt

    def _send_unsent(self) -> None:
        if self._unsent is not None:
            self._send(self._unsent)

    def _answer(self, message: str) -> Turn:
        with (
            AnswerKeys(sys.stdin) as stop_on_ctrl_c,
            progress_view(sys.stderr, quiet=self._quiet) as show_progress,
            SamplesView(sys.stdout, n_samples=1) as show_text,
        ):
            return show(self._chat.say(message), show_progress, show_text, stop_on_ctrl_c)

    def _set_or_show_system(self, text: str) -> None:
        conversation = self._chat.conversation
        if text:
            conversation.system = None if text == _NO_SYSTEM else text
            self._note("The system message applies from the next message on.")
        else:
            _write_lines([conversation.system or "There is no system message."])

    def _note(self, line: str) -> None:
        if not self._quiet:
            sys.stderr.write(styled(printable(line), DIM, sys.stderr) + "\n")
            sys.stderr.flush()


def _write_lines(lines: list[str]) -> None:
    """Show what was asked for."""
    for line in lines:
        sys.stderr.write(printable(line) + "\n")
