"""`gptfast chat`, which is `generate --interactive` with a make-believe model: what it answers is in the message.

The modules that load PyTorch are replaced before anything imports them, so that a session takes a fraction of a second
and does exactly what a test needs. A message of one of these words has its own answer; any other is repeated.

    slow     "1 2 3 ... 20 ", ten numbers a second
    long     fills the context with its answer
    nothing  an empty answer
    escape   an answer with an escape sequence in it
    big      finds no room as long as there is an exchange to forget
    wrong    is refused, as a template may do
    memory   runs out of memory
"""

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any, Self

from gptfast_cli import app
from gptfast_cli.core.errors import UsageError
from gptfast_cli.core.events import Finished, Job, Measured, Note, TextChunk
from gptfast_cli.core.settings import Settings, load_settings
from gptfast_cli.tree import Command


class ContextFullError(UsageError):
    pass


@dataclass(frozen=True)
class ChatRequest:
    settings: Settings


@dataclass(frozen=True)
class Turn:
    text: str
    finish_reason: str = "eos"
    n_generated: int = 2
    context_used: int = 310
    max_context: int = 2048
    ttft_s: float | None = 0.012
    decode_tok_s: float | None = 178.0
    filled_the_context: bool = False

    @property
    def is_kept(self) -> bool:
        return bool(self.text)


@dataclass
class Conversation:
    exchanges: list[tuple[str, str]] = field(default_factory=list)
    system: str | None = None
    oldest_tokens: int = 61

    def drop_oldest(self) -> None:
        if not self.exchanges:
            raise UsageError("There is no exchange to forget yet.")
        del self.exchanges[0]


class Chat:
    seed = 42

    def __init__(self) -> None:
        self.conversation = Conversation()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        sys.stderr.write("(closed)\n")

    def say(self, message: str) -> Job[Turn]:
        if message == "big" and self.conversation.exchanges:
            raise ContextFullError("The context is full.", "/drop forgets the oldest exchange.")
        if message == "wrong":
            raise UsageError("The template refuses this.")
        if message == "memory":
            raise MemoryError
        turn = yield from self._answer(message)
        self.conversation.exchanges.append((message, turn.text))
        return turn

    def save(self, path: Path) -> None:
        path.write_text(repr(self.conversation.exchanges))

    def _answer(self, message: str) -> Job[Turn]:
        text = ""
        yield Measured("prefill", 4, 0.01)
        try:
            for piece in _pieces(message, self.conversation):
                text += piece
                yield TextChunk(0, piece)
        except KeyboardInterrupt:
            yield Finished(0)
            return Turn(text, "interrupted")
        yield Finished(0)
        turn = Turn(text)
        return replace(turn, finish_reason="length", filled_the_context=True) if message == "long" else turn


def _pieces(message: str, conversation: Conversation) -> Iterator[str]:
    match message:
        case "slow":
            for n in range(1, 21):
                yield f"{n} "
                time.sleep(0.1)
        case "nothing":
            pass
        case "escape":
            yield "red \x1b[31mtext"
        case _:
            yield f"{len(conversation.exchanges)}:"
            yield f"{message!r}"


def open_chat(_: ChatRequest) -> Job[Chat]:
    yield Note("Model: make-believe")
    return Chat()


def replace_modules() -> None:
    fakes: dict[str, tuple[Any, ...]] = {
        "jobs.chat": (Chat, ChatRequest, Turn, open_chat),
        "engine": (),
        "engine.chat": (ContextFullError,),
    }
    for name, contents in fakes.items():
        module = ModuleType(f"gptfast_cli.core.{name}")
        vars(module).update({content.__name__: content for content in contents})
        sys.modules[module.__name__] = module


def chat(prompt: str | None = None, *, quiet: bool = False) -> None:
    from gptfast_cli.commands.interactive import interact

    interact(ChatRequest(load_settings()), prompt, quiet=quiet)


if __name__ == "__main__":
    replace_modules()
    app.COMMANDS = (Command("chat", chat), Command("other", chat))
    app.main()
