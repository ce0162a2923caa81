"""Chat prompts by a model's chat template, and conversations within the context length."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeAlias

from gptfast_cli.core.engine.load import LoadedModel
from gptfast_cli.core.engine.reasoning import Reasoning, ReasoningParser, closing_tokens, find_reasoning
from gptfast_cli.core.engine.request import Limits
from gptfast_cli.core.errors import GptFastError, NotFoundError, UsageError
from gptfast_cli.core.events import Note
from gptfast_cli.core.tokenizers.chat import ChatTemplate, llama_2_template, open_chat_template, read_chat_template

Message: TypeAlias = Mapping[str, Any]
"""One message of a conversation as in the OpenAI API: `{"role": "user", "content": "..."}`."""


_ANSWERED = ({"role": "user", "content": "Question"}, {"role": "assistant", "content": "An-answer-of-one-word"})
_FALLBACK = "Use Llama 2's [INST] format instead: --chat"


@dataclass(frozen=True, slots=True)
class ChatOptions:
    """Whether and how to chat.

    chat:      None: if the model has a template; True: without a template in Llama 2's [INST] format
    system:    system message
    template:  name of one of the model's templates, or a file
    variables: of the template: keyword arguments of transformers' apply_chat_template
    """

    chat: bool | None = None
    system: str | None = None
    template: str | None = None
    variables: Mapping[str, Any] = field(default_factory=dict)


_THINKING = ("enable_thinking", "thinking")  # names in use: of Qwen, GLM, SmolLM; of DeepSeek, Granite


def thinking_variables(*, think: bool) -> dict[str, Any]:
    """The variables of a chat template that turn reasoning on or off."""
    return dict.fromkeys(_THINKING, think)


class Prompter:
    """Encodes texts and conversations for a model; a context manager that ends the template's process."""

    def __init__(
        self, loaded: LoadedModel, template: ChatTemplate | None, options: ChatOptions, *, is_fallback: bool
    ) -> None:
        self._name = loaded.name
        self._tokenizer = loaded.tokenizer
        self._template = template
        self._system = options.system
        self.variables = options.variables
        self.is_fallback = is_fallback  # Llama 2's format, since the model has no template

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._template is not None:
            self._template.close()

    @property
    def is_chat(self) -> bool:
        """Whether a prompt is a message to answer, not a text to continue."""
        return self._template is not None

    def notes(self) -> Iterator[Note]:
        """Notes on the format, and on variables that the template does not read."""
        if self.is_fallback:
            yield Note(f"{self._name} has no chat template: using Llama 2's [INST] format.")
        if self._template is not None:
            unread = [name for name in self.variables if not self._template.reads(name)]
            if not set(_THINKING) <= set(unread):  # it reads one of them
                unread = [name for name in unread if name not in _THINKING]
            if unread:
                yield Note(f"Without effect, since the chat template does not read it: {', '.join(unread)}")

    def opening(self) -> list[Message]:
        """First messages of a conversation: the system message, if any."""
        return [] if self._system is None else [{"role": "system", "content": self._system}]

    def text(self, prompt: str) -> str:
        """The text to encode for a prompt: the prompt itself, or the rendered conversation."""
        return self.render([*self.opening(), {"role": "user", "content": prompt}]) if self.is_chat else prompt

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The text of a conversation, by default with the header of the answer.

        variables: of the template, besides those of the options

        Raises UsageError if the model has no chat template or it refuses the messages, CorruptError for a template that
        is broken or unsafe.
        """
        if self._template is None:
            raise UsageError(f"{self._name} has no chat template, so it takes a prompt and no messages.", _FALLBACK)
        return self._template.render(
            messages, add_generation_prompt=add_generation_prompt, variables={**self.variables, **(variables or {})}
        )

    @cached_property
    def turn_end_ids(self) -> frozenset[int]:
        """The token with which the chat template ends an answer, such as <|im_end|>, found in a rendered conversation.

        Empty if there is no template, or it uses no single token.
        """
        if self._template is None or self._tokenizer is None:
            return frozenset()
        try:
            text = self.render(_ANSWERED, add_generation_prompt=False)
        except GptFastError:  # the template refuses this conversation, perhaps not the user's
            return frozenset()
        _, is_there, after = text.rpartition(_ANSWERED[-1]["content"])
        added = self._tokenizer.vocabulary.added_tokens
        possible = added.keys() - closing_tokens(self._template.text, added)
        closing = [token for token in possible if after.lstrip().startswith(token)] if is_there else []
        return frozenset({added[max(closing, key=len)]} if closing else ())

    @cached_property
    def _reasoning(self) -> Reasoning | None:
        if self._template is None or self._tokenizer is None:
            return None
        return find_reasoning(self._template.text, self._tokenizer)

    def reasoning_parser(self, prompt: Sequence[int]) -> ReasoningParser | None:
        """A parser of one answer to a prompt of `encode`; None if it is no chat, or the model knows no reasoning."""
        if self._reasoning is None or self._tokenizer is None:
            return None
        return self._reasoning.parser(self._tokenizer, prompt)

    def encode(self, text: str) -> tuple[int, ...]:
        """Token ids of a result of `text` or `render`. Raises UsageError if the model has no tokenizer."""
        if self._tokenizer is None:
            raise UsageError(f"{self._name} has no tokenizer.", "Give token ids instead: --prompt-ids 1,2,3")
        # a template writes its own BOS, or leaves it out on purpose
        return tuple(self._tokenizer.encode(text, bos=not self.is_chat))


def turn_end_ids(loaded: LoadedModel, options: ChatOptions) -> frozenset[int]:
    """The token that ends an answer, if prompts are messages. Raises what `open_prompter` raises."""
    with open_prompter(loaded, options) as prompter:
        return prompter.turn_end_ids


def open_prompter(loaded: LoadedModel, options: ChatOptions) -> Prompter:
    """The prompter of a model.

    Raises UsageError for an unknown template and for options that need one, CorruptError for an unreadable one.
    """
    template = None if options.chat is False else _own_template(loaded.tokenizer_folder, options)
    is_fallback = template is None and options.chat is True
    if is_fallback:
        template = llama_2_template(loaded.tokenizer_folder, loaded.tokenizer)
    if template is None and options.system is not None:
        if options.chat is False:
            raise UsageError("--system and --no-chat exclude each other.")
        raise UsageError(f"--system requires a chat template, and {loaded.name} has none.", _FALLBACK)
    if template is None and options.variables:
        if options.chat is False:
            raise UsageError("--no-chat excludes --think, --no-think and --template-var.")
        raise UsageError(f"{loaded.name} has no chat template, whose variables --think and --template-var set.")
    return Prompter(loaded, template, options, is_fallback=is_fallback)


def _own_template(folder: Path, options: ChatOptions) -> ChatTemplate | None:
    if options.template is not None and (file := Path(options.template).expanduser()).is_file():
        return read_chat_template(file, folder)
    return open_chat_template(folder, options.template)


_MIN_ANSWER_TOKENS = 16  # required free context


@dataclass(frozen=True, slots=True)
class Exchange:
    """A user message and its answer; `reasoning` of the answer: None if there is none."""

    message: str
    answer: str
    reasoning: str | None = None


class ContextFullError(UsageError):
    """A message that leaves the context no room for an answer."""


class Conversation:
    """Exchanges with a system message, within the context length.

    Without a chat template it is a growing text: each message begins a new line, and the model continues it.
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
                "Start with --chat to use Llama 2's [INST] format.",
            )
        self._opening = [] if text is None else [{"role": "system", "content": text}]

    @property
    def messages(self) -> list[Message]:
        """All messages so far, the system message first."""
        return self._messages(self.exchanges)

    @property
    def row(self) -> dict[str, object]:
        """The conversation as a row of a prompts file: `{"messages": [...]}`, or `{"prompt": "..."}` for a text."""
        if not self._prompter.is_chat:
            return {"prompt": _text(self.exchanges)}
        variables = self._prompter.variables
        return {"messages": self.messages} | ({"chat_template_kwargs": dict(variables)} if variables else {})

    @property
    def oldest_tokens(self) -> int:
        """Tokens freed by dropping the oldest exchange; 0 if there is none."""
        if not self.exchanges:
            return 0
        again = self.exchanges[-1].message  # a last message, which the template accepts
        return len(self._encode(self.exchanges, again)) - len(self._encode(self.exchanges[1:], again))

    def drop_oldest(self) -> None:
        """Remove the oldest exchange. Raises NotFoundError if there is none."""
        if not self.exchanges:
            raise NotFoundError("There is no exchange to forget yet.")
        del self.exchanges[0]

    def prompt(self, message: str) -> tuple[int, ...]:
        """Token ids of the conversation with one more message and the header of its answer.

        Raises ContextFullError if there is no room for an answer, and what `Prompter.render` raises.
        """
        prompt = self._encode(self.exchanges, message)
        if self._has_room(prompt):
            return prompt
        alone, holds = self._encode([], message), self._limits.max_context
        if not self._has_room(alone):
            raise ContextFullError(
                f"The context holds {holds:,} tokens: this message alone has {len(alone):,},\n"
                f"and an answer needs {self._min_answer}.",
                f"Shorten it, or {self._limits.more_room}.",
            )
        raise ContextFullError(
            f"The context is full: {len(prompt):,} of {holds:,} tokens with this message,\n"
            f"and an answer needs {self._min_answer}.",
            f"Make room: /drop the oldest exchange ({self.oldest_tokens:,} tokens), or /reset all.",
        )

    @property
    def _min_answer(self) -> int:
        return min(_MIN_ANSWER_TOKENS, self._limits.max_new_tokens)

    def _has_room(self, prompt: tuple[int, ...]) -> bool:
        return len(prompt) + self._min_answer <= self._limits.max_context

    def _encode(self, exchanges: Sequence[Exchange], message: str) -> tuple[int, ...]:
        if self._prompter.is_chat:
            messages = [*self._messages(exchanges), {"role": "user", "content": message}]
            return self._prompter.encode(self._prompter.render(messages))
        return self._prompter.encode(_on_a_new_line(_text(exchanges), message))

    def _messages(self, exchanges: Sequence[Exchange]) -> list[Message]:
        messages = list(self._opening)
        for exchange in exchanges:
            messages.append({"role": "user", "content": exchange.message})
            # templates know the reasoning under this name, and most leave it out of earlier turns
            reasoning = {} if exchange.reasoning is None else {"reasoning_content": exchange.reasoning}
            messages.append({"role": "assistant", "content": exchange.answer, **reasoning})
        return messages


def _text(exchanges: Sequence[Exchange]) -> str:
    text = ""
    for exchange in exchanges:
        text = _on_a_new_line(text, exchange.message) + exchange.answer
    return text


def _on_a_new_line(text: str, line: str) -> str:
    return f"{text}{line}" if not text or text.endswith("\n") else f"{text}\n{line}"
