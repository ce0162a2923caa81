"""The process that renders chat templates: JSON lines, requests on stdin and responses on stdout.

It runs as a script and imports nothing of gptfast, so that it starts in a tenth of a second. The Jinja environment is
that of transformers (utils/chat_template_utils.py), so that the text is the same.

Request: {"template", "variables", "messages", "add_generation_prompt"}, with tools and documents among the variables.
Response: {"text"}, or {"refused"} with the template's own message, or {"failed"} with the error. The first line, once
loaded, is {}.
"""

import contextlib
import functools
import json
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import Template, nodes
from jinja2.exceptions import SecurityError, TemplateError, TemplateSyntaxError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

if sys.platform != "win32":
    import resource

MOST_CHARACTERS = 1 << 24
MOST_MEMORY_BYTES = 1 << 30  # address space; the idle process uses about 3 % of it
LAST_RESORT_SECONDS = 3.0  # for a render without a parent; a parent ends it sooner

_MOST_REASON_CHARACTERS = 1000


class RefusedError(TemplateError):
    """The template called `raise_exception`: it does not support the conversation."""


class TooLongError(Exception):
    """The text would be longer than MOST_CHARACTERS."""


class PrintedPartsError(Exception):
    """The template prints the list of a message's parts, so it does not support lists."""

    def __init__(self) -> None:
        super().__init__("it supports text only, and a message has other parts")


class Parts(list[Any]):
    """The parts of a message; raises PrintedPartsError if the list itself is printed."""

    def __repr__(self) -> str:
        raise PrintedPartsError

    __str__ = __repr__


class Part(dict[str, Any]):
    """A part of a message; likewise."""

    def __repr__(self) -> str:
        raise PrintedPartsError

    __str__ = __repr__


class Generation(Extension):
    """`{% generation %}` marks the assistant's text for training; here only a scope."""

    tags = {"generation"}  # noqa: RUF012 (Jinja's own declaration)

    def parse(self, parser: Parser) -> nodes.Node:
        """The marked block as a call that returns it."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("unchanged"), [], [], body).set_lineno(line)

    def unchanged(self, caller: Callable[[], str]) -> str:
        """The block's text."""
        return caller()


class PlainDict:
    """`dict` for templates, without access to the type's attributes."""

    def __call__(self, *pairs: Any, **named: Any) -> dict[Any, Any]:  # noqa: ANN401 (whatever a template gives)
        """As of dict."""
        return dict(*pairs, **named)

    def fromkeys(self, *arguments: Any) -> dict[Any, Any]:  # noqa: ANN401
        """As of dict."""
        return dict.fromkeys(*arguments)


class GuardedNamespace(Namespace):
    """`namespace` for templates, without names that give access to the interpreter."""

    def __init__(*arguments: Any, **named: Any) -> None:  # noqa: ANN401 (`self` may be a name in it)
        self, *pairs = arguments
        attributes = dict(*pairs, **named)
        for name in attributes:
            _check_name(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:  # noqa: ANN401
        _check_name(name)
        super().__setitem__(name, value)


def main() -> None:
    """Answer requests until stdin is closed."""
    _limit_memory()
    _send({})
    for line in sys.stdin.buffer:
        with _last_resort():
            answer = _answer(json.loads(line))
        _send(answer)


def _limit_memory() -> None:
    if sys.platform == "win32":
        return
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = MOST_MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(MOST_MEMORY_BYTES, hard)
    with contextlib.suppress(ValueError, OSError):  # not supported on macOS: time and output are still limited
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


@contextlib.contextmanager
def _last_resort() -> Iterator[None]:
    """Kill this process by an alarm, which also stops loops in C."""
    if sys.platform == "win32":
        yield
        return
    signal.setitimer(signal.ITIMER_REAL, LAST_RESORT_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _send(answer: dict[str, str]) -> None:
    line = json.dumps(answer, ensure_ascii=False) + "\n"
    sys.stdout.buffer.write(line.encode("utf-8", "surrogatepass"))
    sys.stdout.buffer.flush()


def _answer(request: dict[str, Any]) -> dict[str, str]:
    try:
        template = _compiled(request["template"])
        return {"text": _rendered(template, request)}
    except (RefusedError, PrintedPartsError) as error:
        return {"refused": str(error)[:_MOST_REASON_CHARACTERS]}
    except Exception as error:  # noqa: BLE001 (a template can raise whatever Python can)
        return {"failed": _reason(error)[:_MOST_REASON_CHARACTERS]}


@functools.lru_cache(maxsize=2)  # one may be for conversations with tools
def _compiled(source: str) -> Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = _now
    environment.globals["dict"] = PlainDict()
    environment.globals["namespace"] = GuardedNamespace
    return environment.from_string(source)


def _rendered(template: Template, request: dict[str, Any]) -> str:
    """The text; messages in parts are passed as lists first, then as plain text if the template fails on lists."""
    messages = request["messages"]
    try:
        return _text(template, request, messages)
    except (MemoryError, TooLongError):
        raise
    except Exception:
        plain = [_as_plain_text(message) for message in messages]
        if plain == messages:
            raise
        return _text(template, request, plain)


def _text(template: Template, request: dict[str, Any], messages: list[dict[str, Any]]) -> str:
    variables = {"tools": None, "documents": None} | request["variables"]
    given = {
        "add_generation_prompt": request["add_generation_prompt"],
        "messages": [_in_parts(each) for each in messages],
    }
    return _joined(template.generate(variables | given))


def _joined(chunks: Iterable[str]) -> str:
    parts, n_characters = [], 0
    for chunk in chunks:
        n_characters += len(chunk)
        if n_characters > MOST_CHARACTERS:
            raise TooLongError
        parts.append(chunk)
    return "".join(parts)


def _in_parts(message: dict[str, Any]) -> dict[str, Any]:
    content = message.get("content")
    if not isinstance(content, list):
        return message
    return message | {"content": Parts(Part(part) if isinstance(part, dict) else part for part in content)}


def _as_plain_text(message: dict[str, Any]) -> dict[str, Any]:
    """The message with its text parts joined by line breaks; other messages unchanged."""
    match message.get("content"):
        case [*parts] if all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in parts):
            return message | {"content": "\n".join(part["text"] for part in parts)}
    return message


def _to_json(
    value: Any,  # noqa: ANN401
    ensure_ascii: bool = False,  # noqa: FBT001, FBT002 (a template may give it by place)
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,  # noqa: FBT001, FBT002
) -> str:
    # Jinja's own escapes HTML
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: object) -> NoReturn:
    raise RefusedError(str(message))


def _now(form: str) -> str:
    return datetime.now().strftime(form)  # noqa: DTZ005 (the day where the person is, and no zone's name)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace cannot hold {name!r}")


def _reason(error: Exception) -> str:
    match error:
        case TemplateSyntaxError(lineno=line):
            return f"line {line}: {error.message}"
        case TemplateError():
            return str(error)
        case MemoryError():
            return f"it needs more than {MOST_MEMORY_BYTES >> 20} MiB of memory"
        case RecursionError():
            return "it is nested too deeply"
        case TooLongError():
            return f"it writes more than {MOST_CHARACTERS} characters"
        case _:
            return f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    main()
