"""What a row wants answered: a text, token ids, or a conversation as in the OpenAI API."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from gptfast_cli.core.fields import Fields


@dataclass(frozen=True, slots=True)
class Messages:
    """Messages such as `{"role": "user", "content": "..."}`.

    The content is a text or a list of parts `{"type": "text", "text": "..."}`; it may be null where a tool is called.
    """

    messages: tuple[Mapping[str, Any], ...]

    @property
    def has_system_message(self) -> bool:
        """Whether it begins with a system message of its own."""
        return str(self.messages[0]["role"]) == "system"


Prompt: TypeAlias = str | tuple[int, ...] | Messages

_NAMES = ("prompt", "prompt_ids", "messages")


def own_prompt(body: Fields) -> Prompt:
    """The prompt of a row; raises CorruptError where there is none, more than one, or an empty one."""
    given = [name for name in _NAMES if name in body]
    if len(given) != 1:
        there = " and ".join(given) or "none"
        raise body.corrupt("prompt", f"a row has one of {', '.join(_NAMES)}; here is {there}")
    (name,) = given
    prompt = _read(body, name)
    if prompt in ("", ()):
        raise body.corrupt(name, "is empty")
    if "system" in body and not isinstance(prompt, str):
        if isinstance(prompt, tuple):
            raise body.corrupt("system", "token ids take no system message")
        if prompt.has_system_message:
            raise body.corrupt("system", "the messages begin with one already")
    return prompt


def _read(body: Fields, name: str) -> Prompt:
    if name == "messages":
        return _conversation(body)
    return body.text(name) if isinstance(body.values[name], str) else body.integers(name)


def _conversation(body: Fields) -> Messages:
    messages = body.values["messages"]
    if not isinstance(messages, list) or not messages:
        raise body.corrupt("messages", "is not a list of messages")
    return Messages(tuple(_message(body, message) for message in messages))


def _message(body: Fields, message: object) -> Mapping[str, Any]:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise body.corrupt("messages", 'a message is an object with a role and a content, {"role": "user", ...}')
    _check_content(body, message)
    return message


def _check_content(body: Fields, message: Mapping[str, Any]) -> None:
    """Raise CorruptError where the content of a message is anything but text."""
    match message.get("content"):
        case str():
            return
        case None if message.get("tool_calls"):
            return
        case [*parts]:
            for part in parts:
                _check_part(body, part)
        case _:
            raise body.corrupt("messages", "the content of a message is not text")


def _check_part(body: Fields, part: object) -> None:
    match part:
        case {"type": "text", "text": str()}:
            return
        case {"type": str(kind)}:
            raise body.corrupt("messages", f"a part of type {kind} is not text")
        case _:
            raise body.corrupt("messages", "the content of a message is not text")
