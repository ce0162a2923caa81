"""A conversation as a list of exchanges, and the prompt that it makes with one message more."""

from collections.abc import Sequence
from dataclasses import dataclass

from gptfast_cli.core.decode.prompter import Message, Prompter
from gptfast_cli.core.decode.sequence import Limits
from gptfast_cli.core.errors import NotFoundError, UsageError

_LEAST_ANSWER_TOKENS = 16  # with room for fewer, an answer would be cut before it says anything


@dataclass(frozen=True, slots=True)
class Exchange:
    """A message and its answer."""

    message: str
    answer: str


class ContextFullError(UsageError):
    """A message that leaves the context no room for an answer."""


class Conversation:
    """Exchanges under a system message, within the limits of a context.

    With a model that has no chat format it is a text that grows: each message begins a new line of it, as on the
    screen, and the model continues it.
    """

    def __init__(self, prompter: Prompter, limits: Limits) -> None:
        self.exchanges: list[Exchange] = []
        self._prompter = prompter
        self._limits = limits
        self._opening = prompter.opening()

    @property
    def system(self) -> str | None:
        """The system message."""
        return self._opening[0]["content"] if self._opening else None

    @system.setter
    def system(self, text: str | None) -> None:
        if not self._prompter.is_chat:
            raise UsageError(
                "This model has no chat template, so it takes no system message.",
                "Start with --chat to talk in Llama-2's [INST] form.",
            )
        self._opening = [] if text is None else [{"role": "system", "content": text}]

    @property
    def messages(self) -> list[Message]:
        """All messages so far, the system message first."""
        return self._messages(self.exchanges)

    @property
    def row(self) -> dict[str, object]:
        """The conversation as a row of a file of prompts: `{"messages": [...]}`, or `{"prompt": "..."}` for a text."""
        return {"messages": self.messages} if self._prompter.is_chat else {"prompt": _text(self.exchanges)}

    @property
    def oldest_tokens(self) -> int:
        """Tokens of the oldest exchange, which dropping it frees; 0 where there is none."""
        if not self.exchanges:
            return 0
        again = self.exchanges[-1].message  # some message has to stand at the end, and this one the template takes
        return len(self._encode(self.exchanges, again)) - len(self._encode(self.exchanges[1:], again))

    def drop_oldest(self) -> None:
        """Forget the oldest exchange; raises NotFoundError where there is none."""
        if not self.exchanges:
            raise NotFoundError("There is no exchange to forget yet.")
        del self.exchanges[0]

    def prompt(self, message: str) -> tuple[int, ...]:
        """The token ids of the conversation with one message more, up to where its answer begins.

        Raises ContextFullError where they leave no room for an answer, and what Prompter.render raises.
        """
        prompt = self._encode(self.exchanges, message)
        if self._has_room(prompt):
            return prompt
        alone, holds = self._encode([], message), self._limits.max_context
        if not self._has_room(alone):
            raise ContextFullError(
                f"The context holds {holds:,} tokens: this message has {len(alone):,} by itself,\n"
                f"and an answer needs {self._least_answer}.",
                f"Shorten it, or {self._limits.more_room}.",
            )
        raise ContextFullError(
            f"The context is full: {len(prompt):,} of {holds:,} tokens with this message,\n"
            f"and an answer needs {self._least_answer}.",
            f"/drop the oldest exchange ({self.oldest_tokens:,} tokens) or /reset all, and it is sent.",
        )

    @property
    def _least_answer(self) -> int:
        return min(_LEAST_ANSWER_TOKENS, self._limits.max_new_tokens)

    def _has_room(self, prompt: tuple[int, ...]) -> bool:
        return len(prompt) + self._least_answer <= self._limits.max_context

    def _encode(self, exchanges: Sequence[Exchange], message: str) -> tuple[int, ...]:
        if self._prompter.is_chat:
            messages = [*self._messages(exchanges), {"role": "user", "content": message}]
            return self._prompter.encode(self._prompter.render(messages))
        return self._prompter.encode(_on_a_new_line(_text(exchanges), message))

    def _messages(self, exchanges: Sequence[Exchange]) -> list[Message]:
        messages = list(self._opening)
        for exchange in exchanges:
            messages.append({"role": "user", "content": exchange.message})
            messages.append({"role": "assistant", "content": exchange.answer})
        return messages


def _text(exchanges: Sequence[Exchange]) -> str:
    text = ""
    for exchange in exchanges:
        text = _on_a_new_line(text, exchange.message) + exchange.answer
    return text


def _on_a_new_line(text: str, line: str) -> str:
    return f"{text}{line}" if not text or text.endswith("\n") else f"{text}\n{line}"
