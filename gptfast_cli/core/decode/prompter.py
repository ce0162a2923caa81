"""How a model is given what a person wrote: as a text to continue, or as a conversation in its own chat format."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeAlias

from gptfast_cli.core.decode.loading import LoadedModel
from gptfast_cli.core.errors import GptFastError, UsageError
from gptfast_cli.core.events import Note
from gptfast_cli.core.tokenizers.chat import ChatTemplate, llama_2_template, open_chat_template, read_chat_template

Message: TypeAlias = Mapping[str, Any]
"""One message of a conversation as in the OpenAI API: `{"role": "user", "content": "..."}`."""


_ANSWERED = ({"role": "user", "content": "Question"}, {"role": "assistant", "content": "An-answer-of-one-word"})
_STAND_IN = "Llama-2's [INST] form can stand in: --chat"


@dataclass(frozen=True, slots=True)
class ChatOptions:
    """Whether and how to chat.

    chat:     None chats where the model has a template; True without a template takes Llama-2's [INST] form
    system:   the system message
    template: a name among the model's own templates, or a file
    """

    chat: bool | None = None
    system: str | None = None
    template: str | None = None


class Prompter:
    """Turns texts and conversations into a model's token ids; leaving it ends the template's process."""

    def __init__(
        self, loaded: LoadedModel, template: ChatTemplate | None, *, system: str | None, stands_in: bool
    ) -> None:
        self._name = loaded.name
        self._tokenizer = loaded.tokenizer
        self._template = template
        self._system = system
        self.stands_in = stands_in  # Llama-2's form is taken for want of a template; `notes` says so

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._template is not None:
            self._template.close()

    @property
    def is_chat(self) -> bool:
        """Whether a text is a message to answer rather than a beginning to continue."""
        return self._template is not None

    def notes(self) -> Iterator[Note]:
        """What a person should know of the format that is used."""
        if self.stands_in:
            yield Note(f"{self._name} has no chat template: Llama-2's [INST] form stands in.")

    def opening(self) -> list[Message]:
        """The messages that a conversation begins with: the system message, where there is one."""
        return [] if self._system is None else [{"role": "system", "content": self._system}]

    def text(self, prompt: str) -> str:
        """What the model is given for a prompt: the prompt itself, or a conversation that it opens."""
        return self.render([*self.opening(), {"role": "user", "content": prompt}]) if self.is_chat else prompt

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        """The text of a conversation up to where the model's answer begins, or without the words that open it.

        Raises UsageError where the model has no chat format or its template refuses the messages; CorruptError for a
        template that is broken or unsafe.
        """
        if self._template is None:
            raise UsageError(f"{self._name} has no chat template, so it takes a prompt and no messages.", _STAND_IN)
        return self._template.render(messages, add_generation_prompt=add_generation_prompt)

    @cached_property
    def turn_end_ids(self) -> frozenset[int]:
        """The token by which the chat template closes an answer, such as <|im_end|>, where it is a single one.

        It is read off a conversation that ends in an answer. Empty where there is no such token, or no template.
        """
        if self._template is None or self._tokenizer is None:
            return frozenset()
        try:
            text = self._template.render(_ANSWERED, add_generation_prompt=False)
        except GptFastError:  # the template takes no such conversation; its own is told of when it is rendered
            return frozenset()
        _, is_there, after = text.rpartition(_ANSWERED[-1]["content"])
        added = self._tokenizer.vocabulary.added_tokens
        closing = [token for token in added if after.lstrip().startswith(token)] if is_there else []
        return frozenset({added[max(closing, key=len)]} if closing else ())

    def encode(self, text: str) -> tuple[int, ...]:
        """Token ids of what `text` or `render` gave; raises UsageError where the model has no tokenizer."""
        if self._tokenizer is None:
            raise UsageError(f"{self._name} has no tokenizer.", "Give token ids instead: --prompt-ids 1,2,3")
        # a template writes its own BOS, or leaves it out on purpose
        return tuple(self._tokenizer.encode(text, bos=not self.is_chat))


def turn_end_ids(loaded: LoadedModel, options: ChatOptions) -> frozenset[int]:
    """The token that closes an answer where prompts are messages; raises as `open_prompter` does."""
    with open_prompter(loaded, options) as prompter:
        return prompter.turn_end_ids


def open_prompter(loaded: LoadedModel, options: ChatOptions) -> Prompter:
    """The prompter of a model.

    Raises UsageError for a template that is not there and for options that need one; CorruptError for one that cannot
    be read.
    """
    template = None if options.chat is False else _own_template(loaded.path, options)
    stands_in = template is None and options.chat is True
    if stands_in:
        template = llama_2_template(loaded.path, loaded.tokenizer)
    if template is None and options.system is not None:
        if options.chat is False:
            raise UsageError("--system and --no-chat exclude each other.")
        raise UsageError(f"--system needs a chat, and {loaded.name} has no chat template.", _STAND_IN)
    return Prompter(loaded, template, system=options.system, stands_in=stands_in)


def _own_template(folder: Path, options: ChatOptions) -> ChatTemplate | None:
    if options.template is not None and (file := Path(options.template).expanduser()).is_file():
        return read_chat_template(file, folder)
    return open_chat_template(folder, options.template)
