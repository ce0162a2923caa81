"""A chat template: messages in, the one text that the model was trained on out."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from gptfast_cli.core.errors import CorruptError, UsageError
from gptfast_cli.core.tokenizers.chat.worker_process import WorkerProcess

RENDER_SECONDS = 1.5
MOST_REQUEST_BYTES = 1 << 24

_REASONING = ("reasoning_content", "thinking", "reasoning")  # the names for it in use, the standard one first
_CHANGED = "Change them (some models know no system message), or take another template: --chat-template NAME or FILE."
_OTHER = "Take another with --chat-template NAME or FILE, or none with --no-chat."


@dataclass(frozen=True, slots=True)
class TemplateSource:
    """A template's text, where it was read, and the special tokens that it may name, such as bos_token."""

    text: str
    where: str
    variables: Mapping[str, str]


class ChatTemplate:
    """A template with the process that renders it, which starts at once and ends with the `with` block."""

    def __init__(self, source: TemplateSource) -> None:
        self._source = source
        self._worker = WorkerProcess()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the process; a template that is rendered again starts another."""
        self._worker.close()

    def render(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True) -> str:
        """The text of a conversation, as transformers renders it.

        A message's content is a text or, as in the OpenAI API, a list of parts `{"type": "text", "text": ...}`. The
        template is given the list; where it takes texts alone, the parts are the lines of one, as in llama.cpp.

        Raises UsageError where the template refuses the messages, with its own words, or they are none or too many;
        CorruptError where it is broken, leaves its sandbox, or needs too much time, memory or output.
        """
        request = self._request(messages, add_generation_prompt=add_generation_prompt)
        try:
            answer = json.loads(self._worker.ask(request, seconds=RENDER_SECONDS))
        except TimeoutError as error:
            raise self._unusable(f"it ran for longer than {RENDER_SECONDS:g} s") from error
        except ChildProcessError as error:
            raise self._unusable("the process that rendered it ended") from error
        match answer:
            case {"text": str(text)}:
                return text
            case {"refused": str(reason)}:
                raise UsageError(f"The chat template refuses these messages: {reason}", _CHANGED)
            case _:
                raise self._unusable(str(answer["failed"]))

    def _request(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool) -> bytes:
        if not messages:
            raise UsageError("There are no messages to render.", "Give one at least: a user's.")
        request = {
            "template": self._source.text,
            "variables": dict(self._source.variables),
            "messages": [_as_templates_expect(message) for message in messages],
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            line = json.dumps(request, ensure_ascii=False) + "\n"
        except (TypeError, ValueError, RecursionError) as error:
            raise UsageError(f"The messages cannot be written as JSON: {error}") from error
        encoded = line.encode("utf-8", "surrogatepass")
        if len(encoded) > MOST_REQUEST_BYTES:
            raise UsageError(
                f"The messages and the chat template have {len(encoded) / 1e6:.1f} MB together, "
                f"and {MOST_REQUEST_BYTES / 1e6:.1f} are allowed.",
                "Shorten the conversation.",
            )
        return encoded

    def _unusable(self, why: str) -> CorruptError:
        return CorruptError(f"{self._source.where}: the chat template cannot be used: {why}", _OTHER)


def _as_templates_expect(message: Mapping[str, Any]) -> dict[str, Any]:
    """The message without what is null, its reasoning under the standard name, as transformers prepares it."""
    if not isinstance(message, Mapping):
        raise UsageError(f"{message!r:.60} is no message.", 'A message is {"role": "user", "content": "..."}.')
    given = {key: value for key, value in message.items() if value is not None}
    reasoning = next((given[name] for name in _REASONING if name in given), None)
    if reasoning is None:
        return given
    return {"thinking": reasoning, **given, "reasoning_content": reasoning}
