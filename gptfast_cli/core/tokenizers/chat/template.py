"""A chat template, rendered by a worker process that has no access to files, network or secrets."""

import contextlib
import json
import os
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

_SCRIPT = Path(__file__).with_name("worker.py")
_START_SECONDS = 60.0  # a tenth of one is usual
# What Python needs to start and to find jinja2, and what the date in a template depends on: no tokens, keys or others'
# variables, as a template is a program from anyone.
_ENVIRONMENT = (
    *("PYTHONHOME", "PYTHONPATH", "PYTHONUSERBASE", "PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX"),
    *("HOME", "PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT", "USERPROFILE", "APPDATA"),
    *("LANG", "LC_ALL", "LC_CTYPE", "TZ"),
)


class WorkerProcess:
    """A process that is started at once, so that it loads while its parent does other things.

    After an answer that did not come it is gone, and the next request starts another.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = _started()
        self._is_ready = False

    def ask(self, request: bytes, *, seconds: float) -> bytes:
        """The line that answers a line.

        Raises TimeoutError if it takes longer than `seconds`, in which a start does not count, ChildProcessError
        where the process ends instead, and GptFastError where none can be started.
        """
        try:
            if self._process is None:
                self._process, self._is_ready = _started(), False
            if not self._is_ready:
                _wait_for(self._process)
                self._is_ready = True
            return _exchange(self._process, request, seconds)
        except BaseException:  # Ctrl-C too: a late answer must not be taken for that to the next request
            self.close()
            raise

    def close(self) -> None:
        """End the process, whatever it is doing."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()  # until it is gone, and the pipes are closed
            self._process = None


def _started() -> subprocess.Popen[bytes]:
    return subprocess.Popen(  # noqa: S603 (our own script; -P keeps its folder from being imported from)
        [sys.executable, "-P", str(_SCRIPT)],
        env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        process_group=0,  # where a terminal's Ctrl-C does not reach it: the parent decides
    )


def _wait_for(process: subprocess.Popen[bytes]) -> None:
    """Return when the process has said that it is ready."""
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
        process.kill()  # which also ends a write to it, or a read from it, that is under way

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        with contextlib.suppress(BrokenPipeError):  # it has ended, as the missing answer will tell
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

        Raises UsageError if the template refuses the messages, with its own words, or they are none or too many;
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
