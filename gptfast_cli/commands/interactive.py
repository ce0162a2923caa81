"""`gptfast generate --interactive`: lines in, answers out, until /exit or the end of the input.

At a terminal an error costs one line and the chat goes on; in a script the first error ends the program.
"""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

from gptfast_cli.commands.slash import (
    Call,
    Message,
    completions,
    help_lines,
    parse,
)
from gptfast_cli.core.engine.chat import ContextFullError
from gptfast_cli.core.errors import GptFastError
from gptfast_cli.core.jobs.chat import (
    Chat,
    ChatRequest,
    Turn,
    open_chat,
)
from gptfast_cli.render.chat import AnswerKeys, LineHistory, Lines, open_lines, write_turn
from gptfast_cli.render.failure import named, write_error
from gptfast_cli.render.progress import progress_view, show
from gptfast_cli.render.samples import SamplesView
from gptfast_cli.render.terminal import printable, styled

_PROMPT, _PROMPT_FOR_MORE = "> ", ". "
_GOES_ON = "\\"
_NO_SYSTEM = "-"
_DIM = "2"


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
        self._knows_how_to_leave = False
        self._is_over = False

    def run(self, first_message: str | None) -> None:
        """Take line after line."""
        self._tell(f"{'' if self._is_script else '/help lists the commands, Ctrl-D leaves. '}Seed {self._chat.seed}.")
        if first_message is not None:
            with self._survival():
                self._begin_with(first_message)
        while not self._is_over:
            line = self._read()
            if line.strip():
                self._lines.remember(line)
                with self._survival():
                    self._take(line)

    def _begin_with(self, message: str) -> None:
        if not self._is_script:
            sys.stderr.write(f"{_PROMPT}{printable(message)}\n")
        self._lines.remember(message)
        self._send(message)

    def _read(self) -> str:
        """A line, or several where they go on; empty if Ctrl-C cleared it, and at the end of the input."""
        line = ""
        try:
            line = self._lines.read(_PROMPT)
            while line.endswith(_GOES_ON):
                line = line.removesuffix(_GOES_ON) + "\n"
                line += self._lines.read(_PROMPT_FOR_MORE)
        except EOFError:
            if not self._is_script:
                sys.stderr.write("\n")  # behind the prompt
            self._is_over = True
        except KeyboardInterrupt:
            self._let_go()
            line = ""
        return line.rstrip("\n")  # which pasted text often ends with

    @contextlib.contextmanager
    def _survival(self) -> Iterator[None]:
        """Let an error cost no more than the line that it arose in, where somebody is there to type another."""
        try:
            yield
        except BrokenPipeError:
            raise  # nobody reads on
        except KeyboardInterrupt:
            self._let_go()
        except (GptFastError, OSError, MemoryError, RuntimeError) as error:
            if self._is_script:
                raise
            write_error(named(error, flags=("--max-new-tokens", "--max-context")), sys.stderr)

    def _let_go(self) -> None:
        """What Ctrl-C does where no answer is under way."""
        if self._is_script:
            raise KeyboardInterrupt
        sys.stderr.write("\n")  # behind what was typed
        if not self._knows_how_to_leave:
            self._knows_how_to_leave = True
            self._tell("Ctrl-D or /exit leaves.")

    def _take(self, line: str) -> None:
        conversation = self._chat.conversation
        match parse(line):
            case Message(text):
                self._send(text)
            case Call("help"):
                _write_lines(help_lines())
            case Call("reset"):
                conversation.exchanges.clear()
                self._tell("The conversation begins anew.")
                self._send_unsent()
            case Call("drop"):
                n_tokens = conversation.oldest_tokens
                conversation.drop_oldest()
                self._tell(f"Forgot the oldest exchange, {n_tokens:,} tokens.")
                self._send_unsent()
            case Call("system", text):
                self._set_or_show_system(text)
            case Call("save", file):
                self._chat.save(Path(file).expanduser())
                self._tell(f"Saved to {file}.")
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
            self._tell(f"The context is full: /drop the oldest exchange ({n_tokens:,} tokens) or /reset all.")
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
            self._tell("It holds from the next message on.")
        else:
            _write_lines([conversation.system or "There is no system message."])

    def _tell(self, line: str) -> None:
        if not self._quiet:
            sys.stderr.write(styled(printable(line), _DIM, sys.stderr) + "\n")
            sys.stderr.flush()


def _write_lines(lines: list[str]) -> None:
    """Show what was asked for."""
    for line in lines:
        sys.stderr.write(printable(line) + "\n")
