"""A chat template, rendered by a worker process that has no access to files, network or secrets."""

import contextlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from gptfast_cli.core.errors import CorruptError, GptFastError, UsageError

MOST_ANSWER_BYTES = (6 << 24) + 100  # 2^24 characters, each at worst written as \u0000

WORKER = Path(__file__).with_name("worker.py")
_START_SECONDS = 60.0  # a tenth of one is usual
# What Python needs to start and to find jinja2, and the time zone: no other variables, since templates are untrusted.
_ENVIRONMENT = (
    *("PYTHONHOME", "PYTHONPATH", "PYTHONUSERBASE", "PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX"),
    *("HOME", "PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT", "USERPROFILE", "APPDATA"),
    *("LANG", "LC_ALL", "LC_CTYPE", "TZ"),
)


class WorkerProcess:
    """A worker process, started at once so that it loads in parallel; restarted by the next request after a failure."""

    def __init__(self, script: Path = WORKER) -> None:
        self._script = script
        self._process: subprocess.Popen[bytes] | None = _started(script)
        self._is_ready = False

    def ask(self, request: bytes, *, seconds: float) -> bytes:
        """Send a line and return the response line.

        Raises TimeoutError after `seconds` (without the start), ChildProcessError if the process ends, GptFastError if
        it cannot be started.
        """
        try:
            if self._process is None:
                self._process, self._is_ready = _started(self._script), False
            if not self._is_ready:
                _wait_for(self._process)
                self._is_ready = True
            return _exchange(self._process, request, seconds)
        except BaseException:  # also Ctrl-C: a late response must not be taken for the next request's
            self.close()
            raise

    def close(self) -> None:
        """Kill the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()  # reap it, and close the pipes
            self._process = None


def _started(script: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(  # noqa: S603 (our own script; -P keeps its folder from being imported from)
        [sys.executable, "-P", str(script)],
        env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        process_group=0,  # a terminal's Ctrl-C does not reach it: the parent decides
    )


def _wait_for(process: subprocess.Popen[bytes]) -> None:
    """Wait until the process is ready."""
    try:
        _exchange(process, b"", _START_SECONDS)
    except (TimeoutError, ChildProcessError) as error:
        raise GptFastError("The process that renders chat templates did not start.", "Is jinja2 installed?") from error


def _exchange(process: subprocess.Popen[bytes], request: bytes, seconds: float) -> bytes:
    assert process.stdin is not None
    assert process.stdout is not None
    is_late = threading.Event()

    def end() -> None:
        is_late.set()
        process.kill()  # also ends a blocked read or write

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        with contextlib.suppress(BrokenPipeError):  # it has ended: there will be no response
            process.stdin.write(request)
            process.stdin.flush()
        answer = process.stdout.readline(MOST_ANSWER_BYTES)
    finally:
        timer.cancel()
        timer.join()
    if is_late.is_set():
        raise TimeoutError
    if not answer.endswith(b"\n"):
        raise ChildProcessError
    return answer


MOST_REQUEST_BYTES = 1 << 24

_OWN = ("messages", "add_generation_prompt", "continue_final_message")  # variables that a request itself sets
_REASONING = ("reasoning_content", "thinking", "reasoning")  # names in use, the standard one first
_CHANGED = "Change them (some models take no system message), or use another template: --chat-template NAME or FILE."
_OTHER = "Use another with --chat-template NAME or FILE, or none with --no-chat."


@dataclass(frozen=True, slots=True)
class TemplateSource:
    """A template's text, its origin for error messages, and its variables: special tokens such as bos_token.

    text_with_tools: the model's other template, for conversations with tools; None if it has none
    """

    text: str
    where: str
    variables: Mapping[str, str]
    text_with_tools: str | None = None


class ChatTemplate:
    """A template with its worker process, which starts at once; a context manager that ends it.

    max_seconds: time limit of a rendering, without the start of the process
    """

    def __init__(self, source: TemplateSource, *, max_seconds: float = 1.5) -> None:
        self._source = source
        self._max_seconds = max_seconds
        self._worker = WorkerProcess()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the process; rendering again starts another."""
        self._worker.close()

    @property
    def text(self) -> str:
        """The template itself, after it the one for conversations with tools."""
        return self._source.text + (self._source.text_with_tools or "")

    def reads(self, variable: str) -> bool:
        """Whether the template has this word, so that a variable of this name may have an effect."""
        return re.search(rf"\b{re.escape(variable)}\b", self.text) is not None

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The text of a conversation, as transformers renders it.

        variables: keyword arguments of transformers' apply_chat_template, `tools` and `documents` among them

        The content of a message is a text or, as in the OpenAI API, a list of parts `{"type": "text", "text": ...}`. If
        the template supports no lists, the parts are joined by line breaks, as in llama.cpp.

        Raises UsageError if the template refuses the messages, there are none or too many, or a variable cannot be set;
        CorruptError if it is broken, violates the sandbox, or exceeds the limits on time, memory or output.
        """
        request = self._request(messages, variables or {}, add_generation_prompt=add_generation_prompt)
        try:
            answer = json.loads(self._worker.ask(request, seconds=self._max_seconds))
        except TimeoutError as error:
            raise self._unusable(f"it ran for longer than {self._max_seconds:g} s") from error
        except ChildProcessError as error:
            raise self._unusable("the process that rendered it ended") from error
        match answer:
            case {"text": str(text)}:
                return text
            case {"refused": str(reason)}:
                raise UsageError(f"The chat template refuses these messages: {reason}", _CHANGED)
            case _:
                raise self._unusable(str(answer["failed"]))

    def _request(
        self, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any], *, add_generation_prompt: bool
    ) -> bytes:
        if not messages:
            raise UsageError("There are no messages to render.", "Give at least one user message.")
        check_variables(variables)
        with_tools = self._source.text_with_tools if variables.get("tools") is not None else None
        request = {
            "template": self._source.text if with_tools is None else with_tools,
            "variables": {**self._source.variables, **variables},
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


def check_variables(variables: Mapping[str, Any]) -> None:
    """Raise UsageError for a variable that a request itself sets, and for tools that are no list of objects."""
    if own := [name for name in _OWN if name in variables]:
        raise UsageError(f"{own[0]}: is no variable of a chat template that can be set")
    tools = variables.get("tools")
    if tools is not None and not (isinstance(tools, list) and all(isinstance(tool, Mapping) for tool in tools)):
        raise UsageError("tools: is not a list of objects", 'A tool is {"type": "function", "function": {...}}.')


def _as_templates_expect(message: Mapping[str, Any]) -> dict[str, Any]:
    """The message without null values, its reasoning under the standard name, as in transformers."""
    if not isinstance(message, Mapping):
        raise UsageError(f"{message!r:.60} is no message.", 'A message is {"role": "user", "content": "..."}.')
    given = {key: value for key, value in message.items() if value is not None}
    reasoning = next((given[name] for name in _REASONING if name in given), None)
    if reasoning is None:
        return given
    return {"thinking": reasoning, **given, "reasoning_content": reasoning}
