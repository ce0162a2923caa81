"""Rows of a prompts file (JSON lines): their fields, options and identity.

Field names of gptfast and of the OpenAI API are synonyms: `max_new_tokens`, `max_tokens` and `max_completion_tokens`;
`num_samples` and `n`. Source: https://platform.openai.com/docs/api-reference/batch

An invalid line does not affect the others: it becomes a BadRow with the reason. Blank lines are skipped but counted,
so `line` is the line number that an editor shows.
"""

import difflib
import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, TypeAlias

from gptfast_cli.core.checkpoints.identity import fingerprint
from gptfast_cli.core.checkpoints.reader import open_checkpoint
from gptfast_cli.core.engine.chat import thinking_variables
from gptfast_cli.core.engine.options import LARGEST_SEED, MOST_SAMPLES, GenerationOptions
from gptfast_cli.core.engine.sampling import check
from gptfast_cli.core.errors import CorruptError, GptFastError, NotFoundError, UsageError
from gptfast_cli.core.fields import Fields, parse_fields
from gptfast_cli.core.models.process_group import ALONE, ProcessGroup
from gptfast_cli.core.tokenizers import tokenizer_folder
from gptfast_cli.core.tokenizers.chat import check_variables

_MAX_NEW_TOKENS = ("max_new_tokens", "max_tokens", "max_completion_tokens")
_NUM_SAMPLES = ("num_samples", "n")
_SAMPLING_NUMBERS = ("temperature", "top_p", "min_p", "repetition_penalty")
_KNOWN: Final = (
    *("id", "prompt", "prompt_ids", "messages", "system", "stop", "seed", "logprobs", "top_logprobs", "ignore_eos"),
    *("top_k", *_SAMPLING_NUMBERS, *_MAX_NEW_TOKENS, *_NUM_SAMPLES),
    *("think", "reasoning_effort", "tools", "chat_template_kwargs"),
)
# labels, and options of a hosted service: ignored, as the answer does not depend on them
_LABELS: Final = (
    *("category", "metadata", "model", "parallel_tool_calls", "prompt_cache_key", "safety_identifier"),
    *("service_tier", "store", "stream_options", "user"),
)
# unsupported fields, and their values without effect, which are accepted; so is null
_UNSUPPORTED: Final[Mapping[str, tuple[object, ...]]] = {
    "best_of": (1,),
    "echo": (False,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "response_format": ({"type": "text"},),
    "stream": (False,),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
}
_ENVELOPE: Final = ("custom_id", "method", "url", "body")
_URLS: Final = ("/v1/chat/completions", "/v1/completions")


def row_body(row: Fields) -> Fields:
    """The fields of a row: the row itself, or the body of an OpenAI batch request.

    Raises CorruptError if the request is not a POST to a completions endpoint.
    """
    if "body" not in row:
        return row
    for name in row:
        if name not in _ENVELOPE:
            raise row.corrupt(name, "is outside of the body; move it into the body")
    if (method := row.text("method", "POST")) != "POST":
        raise row.corrupt("method", f"{method} is not POST")
    if (url := row.text("url", _URLS[0])) not in _URLS:
        raise row.corrupt("url", f"{url} is not {' or '.join(_URLS)}")
    return Fields(row.section("body").values, row.where)


def check_names(body: Fields) -> None:
    """Raise CorruptError for a field that is unknown or not supported."""
    for name in body:
        value = body.values[name]
        if name in _UNSUPPORTED:
            if value is not None and value not in _UNSUPPORTED[name]:
                raise body.corrupt(name, f"{json.dumps(value)[:60]} is not supported")
        elif name not in _KNOWN and name not in _LABELS:
            nearest = difflib.get_close_matches(name, _KNOWN, n=1)
            raise body.corrupt(name, "unknown field" + (f"; did you mean {nearest[0]}?" if nearest else ""))


def row_options(body: Fields, defaults: GenerationOptions) -> GenerationOptions:
    """The default options, overridden by those of the row.

    Raises CorruptError or UsageError for a value of the wrong type or out of range.
    """
    sampling: dict[str, Any] = {name: body.number(name, minimum=0) for name in _SAMPLING_NUMBERS if name in body}
    if "top_k" in body:
        sampling["top_k"] = body.integer("top_k", minimum=0)
    options = replace(
        defaults,
        sampling=replace(defaults.sampling, **sampling),
        max_new_tokens=body.integer(_spelling(body, _MAX_NEW_TOKENS), defaults.max_new_tokens),
        stop=_stop(body, defaults.stop),
        ignore_eos=body.flag("ignore_eos", defaults.ignore_eos),
        num_samples=body.integer(_spelling(body, _NUM_SAMPLES), defaults.num_samples, maximum=MOST_SAMPLES),
        n_logprobs=_n_logprobs(body, defaults.n_logprobs),
        seed=body.integer("seed", minimum=0, maximum=LARGEST_SEED) if "seed" in body else defaults.seed,
    )
    check(options.sampling)
    return options


def row_variables(body: Fields) -> dict[str, Any]:
    """The variables that a row sets for the chat template: `think`, `reasoning_effort`, `tools`, then its kwargs.

    Tools that may not be called (`tool_choice` none) are left out. Raises CorruptError or UsageError.
    """
    variables: dict[str, Any] = {}
    if "think" in body:
        variables |= thinking_variables(think=body.flag("think"))
    if "reasoning_effort" in body:
        variables["reasoning_effort"] = body.text("reasoning_effort")
    if body.values.get("tools") and body.values.get("tool_choice") != "none":
        variables["tools"] = body.values["tools"]
    if "chat_template_kwargs" in body:
        variables |= body.section("chat_template_kwargs").values
    check_variables(variables)
    return variables


def _spelling(body: Fields, names: tuple[str, ...]) -> str:
    """Which of several synonymous field names the row uses; the first if none."""
    used = [name for name in names if name in body]
    if len(used) > 1:
        raise body.corrupt(used[1], f"means the same as {used[0]}; give one of them")
    return used[0] if used else names[0]


def _stop(body: Fields, default: tuple[str, ...]) -> tuple[str, ...]:
    if "stop" not in body:
        return default
    stops = (body.text("stop"),) if isinstance(body.values["stop"], str) else body.texts("stop")
    if "" in stops:
        raise UsageError("stop: needs at least one character")
    return stops


def _n_logprobs(body: Fields, default: int | None) -> int | None:
    """`logprobs` is the number of top tokens, or true with that number in `top_logprobs`."""
    wanted = body.values.get("logprobs")
    if wanted is False:
        return None
    if "top_logprobs" in body:
        return body.integer("top_logprobs", minimum=0)
    if wanted is True:
        return 0
    return default if wanted is None else body.integer("logprobs", minimum=0)


@dataclass(frozen=True, slots=True)
class Messages:
    """Messages such as `{"role": "user", "content": "..."}`.

    The content is a string or a list of parts `{"type": "text", "text": "..."}`; null is allowed with `tool_calls`.
    """

    messages: tuple[Mapping[str, Any], ...]

    @property
    def has_system_message(self) -> bool:
        return str(self.messages[0]["role"]) == "system"


Prompt: TypeAlias = str | tuple[int, ...] | Messages

_NAMES = ("prompt", "prompt_ids", "messages")


def row_prompt(body: Fields) -> Prompt:
    """The prompt of a row. Raises CorruptError if there is none, more than one, or an empty one."""
    given = [name for name in _NAMES if name in body]
    if len(given) != 1:
        there = " and ".join(given) or "none"
        raise body.corrupt("prompt", f"a row has exactly one of {', '.join(_NAMES)}; found {there}")
    (name,) = given
    prompt = _read(body, name)
    if prompt in ("", ()):
        raise body.corrupt(name, "is empty")
    if "system" in body and not isinstance(prompt, str):
        if isinstance(prompt, tuple):
            raise body.corrupt("system", "cannot be combined with token ids")
        if prompt.has_system_message:
            raise body.corrupt("system", "the messages already begin with a system message")
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
    """Raise CorruptError if the content of a message is not text."""
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


RowId: TypeAlias = str | int | float

_BYTES = "latin-1"  # one character per byte: a line may be invalid UTF-8
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Row:
    """A prompt and its options; `index` counts the rows before it, bad ones included."""

    line: int  # from 1
    digest: str  # SHA-256 of the line
    index: int
    id: RowId
    prompt: Prompt
    options: GenerationOptions
    system: str | None = None  # system message; None: the run's default
    variables: Mapping[str, Any] = field(default_factory=dict)  # of the chat template, besides those of the run


@dataclass(frozen=True, slots=True)
class BadRow:
    """An invalid line and the reason; `id` is None if it could not be read."""

    line: int  # from 1
    digest: str  # SHA-256 of the line
    id: RowId | None
    reason: str


def read_rows(path: Path, defaults: GenerationOptions, group: ProcessGroup = ALONE) -> list[Row | BadRow]:
    """All rows of a file, with default options filled in. Rank 0 reads the file and broadcasts it.

    Raises NotFoundError if the file does not exist, UsageError if it has no valid row.
    """
    rows: list[Row | BadRow] = []
    lines_by_id: dict[str, int] = {}
    content: list[Any] = [[n, line.decode(_BYTES)] for n, line in _lines(path)] if group.rank == 0 else []
    for number, text in group.broadcast(content):
        line = text.encode(_BYTES)
        row = _parse(line, f"{path.name}:{number}", number=number, index=len(rows), defaults=defaults)
        if isinstance(row, Row) and (first := lines_by_id.setdefault(json.dumps(row.id), number)) != number:
            row = BadRow(number, row.digest, row.id, f"id: {json.dumps(row.id)} is already used on line {first}")
        rows.append(row)
    if not rows:
        raise UsageError(f"{path.name}: has no rows.", 'A row is a line such as {"prompt": "Once upon a time"}')
    if all(isinstance(row, BadRow) for row in rows):
        assert isinstance(rows[0], BadRow)
        raise UsageError(
            f"{path.name}: has no valid rows.\nLine {rows[0].line}: {rows[0].reason}",
            'A row is a line such as {"prompt": "Once upon a time"}',
        )
    return rows


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """(line number from 1, content) of the lines that are not blank."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                content = line.removeprefix(_BYTE_ORDER_MARK) if number == 1 else line
                if content.strip():
                    yield number, content
    except FileNotFoundError as error:
        raise NotFoundError(f"There is no file of prompts {str(path)!r}.") from error


def _parse(line: bytes, where: str, *, number: int, index: int, defaults: GenerationOptions) -> Row | BadRow:
    digest = hashlib.sha256(line.strip()).hexdigest()
    row_id: RowId | None = None
    try:
        fields = parse_fields(line, where)
        row_id = _id(fields, default=number)
        body = row_body(fields)
        check_names(body)
        system = body.text("system") if "system" in body else None
        prompt, variables = row_prompt(body), row_variables(body)
        if variables and isinstance(prompt, tuple):
            raise body.corrupt("prompt_ids", "cannot be combined with variables of a chat template")
        return Row(number, digest, index, row_id, prompt, row_options(body, defaults), system, variables)
    except (CorruptError, UsageError) as error:
        return BadRow(number, digest, row_id, _reason(error, where))


def _reason(error: GptFastError, where: str) -> str:
    """An error message without the file name or the dashes of the option."""
    reason = error.message.removeprefix(f"{where}: ").removeprefix("--")
    return re.sub(r": line 1 (column \d+) \(char \d+\)$", r" at \1", reason)  # its "line 1" is not the line of the file


def _id(fields: Fields, *, default: RowId) -> RowId:
    name = "custom_id" if "custom_id" in fields else "id"
    match fields.values.get(name):
        case None:
            return default
        case str() | int() | float() as row_id if not isinstance(row_id, bool) and _is_finite(row_id):
            return row_id
    raise fields.corrupt(name, "is neither a string nor a number")


def _is_finite(row_id: RowId) -> bool:
    return not isinstance(row_id, float) or math.isfinite(row_id)


_HEX_DIGITS = 16
_LARGEST_OTHER_BYTES = 64_000_000


def model_identity(model: Path, home: Path) -> str:
    """SHA-256 over a model's weight fingerprint and the contents of its tokenizer and template files.

    `home`: as in `tokenizer_folder`
    """
    checkpoint = open_checkpoint(model)
    digest = hashlib.sha256(fingerprint(checkpoint).encode())
    files = (path for path in tokenizer_folder(checkpoint.path, home).iterdir() if path.is_file())
    for path in sorted(path for path in files if path.stat().st_size <= _LARGEST_OTHER_BYTES):
        content = path.read_bytes()
        digest.update(f"{path.name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def row_identity(row: Row | BadRow, run: str) -> str:
    """Hash of a row, its index and `run`, the options that all rows share: what its answer depends on."""
    index = row.index if isinstance(row, Row) else None
    return hashlib.sha256(f"{row.digest} {index} {run}".encode()).hexdigest()[:_HEX_DIGITS]
