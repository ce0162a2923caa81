"""Rows of a file of prompts: what each may say, and that a bad one names its fault and spoils no other."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from gptfast_cli.core.batch.rows import BadRow, Messages, Row, read_rows
from gptfast_cli.core.engine.options import GenerationOptions
from gptfast_cli.core.engine.sampling import Sampling
from gptfast_cli.core.errors import NotFoundError, UsageError

DEFAULTS = GenerationOptions(Sampling(temperature=0.5, top_k=7), max_new_tokens=50, stop=("END",), n_logprobs=2)
GOOD = b'{"prompt": "good"}'


def rows_of(folder: Path, *lines: bytes, defaults: GenerationOptions = DEFAULTS) -> list[Row | BadRow]:
    path = folder / "x.jsonl"
    path.write_bytes(b"\n".join(lines))
    return read_rows(path, defaults)


def row_of(folder: Path, **fields: Any) -> Row:
    (row,) = rows_of(folder, json.dumps({"prompt": "good"} | fields).encode())
    assert isinstance(row, Row)
    return row


def reason_of(folder: Path, line: bytes | dict[str, Any]) -> str:
    content = line if isinstance(line, bytes) else json.dumps(line).encode()
    _, row, after = rows_of(folder, GOOD, content, GOOD)
    assert isinstance(row, BadRow) and row.line == 2
    assert isinstance(after, Row) and after.line == 3
    return row.reason


def test_a_row_takes_from_the_command_line_what_it_leaves_open(tmp_path: Path) -> None:
    assert row_of(tmp_path).options == DEFAULTS
    assert row_of(tmp_path, temperature=None, max_new_tokens=None).options == DEFAULTS


def test_a_row_has_its_own_limits_sampling_and_seed(tmp_path: Path) -> None:
    sampling = {"temperature": 0, "top_k": 3, "top_p": 0.9, "min_p": 0.1, "repetition_penalty": 1.1}
    others = {"max_new_tokens": 9, "stop": ["a", "b"], "ignore_eos": True, "num_samples": 3, "logprobs": 4}
    row = row_of(tmp_path, **sampling, **others, seed=2**64 - 1)
    assert row.options == GenerationOptions(Sampling(0, 3, 0.9, 0.1, 1.1), 9, ("a", "b"), True, 3, 4, 2**64 - 1)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"prompt": "text"}, "text"),
        ({"prompt": [1, 2]}, (1, 2)),
        ({"prompt": None, "prompt_ids": [1, 2]}, (1, 2)),
        (
            {"prompt": None, "messages": [{"role": "user", "content": "hi", "name": "Tom"}]},
            Messages(({"role": "user", "content": "hi", "name": "Tom"},)),
        ),
        (
            {"prompt": None, "messages": [{"role": "user", "content": [{"type": "text", "text": t} for t in "hi"]}]},
            Messages(({"role": "user", "content": [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]},)),
        ),
        (
            {"prompt": None, "messages": [{"role": "assistant", "content": None, "tool_calls": [{"id": "x"}]}]},
            Messages(({"role": "assistant", "content": None, "tool_calls": [{"id": "x"}]},)),
        ),
    ],
)
def test_a_prompt_is_text_or_ids_or_messages(tmp_path: Path, fields: dict[str, Any], expected: object) -> None:
    assert row_of(tmp_path, **fields).prompt == expected


def test_an_openai_batch_row_is_read(tmp_path: Path) -> None:
    body = {
        "model": "gpt-4o",
        "messages": [{"role": "user", "content": "hi"}],
        "max_completion_tokens": 9,
        "temperature": 1,
        "top_p": 0.5,
        "stop": "\n\n",
        "seed": 3,
        "n": 2,
        "logprobs": True,
        "top_logprobs": 5,
        "stream": False,
        "user": "u",
        "metadata": {"a": "b"},
        "store": True,
        "frequency_penalty": 0,
        "tools": None,
    }
    request = {"custom_id": "request-1", "method": "POST", "url": "/v1/chat/completions", "body": body}
    (row,) = rows_of(tmp_path, json.dumps(request).encode())
    assert isinstance(row, Row) and row.id == "request-1"
    assert isinstance(row.prompt, Messages)
    assert row.options == GenerationOptions(Sampling(1, 7, 0.5), 9, ("\n\n",), num_samples=2, n_logprobs=5, seed=3)


TOOL = {"type": "function", "function": {"name": "sum", "parameters": {}}}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, {}),
        ({"think": None, "tools": [], "reasoning_effort": None, "chat_template_kwargs": {}}, {}),
        ({"think": False}, {"enable_thinking": False, "thinking": False}),
        ({"reasoning_effort": "high", "tools": [TOOL]}, {"reasoning_effort": "high", "tools": [TOOL]}),
        ({"tools": [TOOL], "tool_choice": "auto"}, {"tools": [TOOL]}),
        ({"tools": [TOOL], "tool_choice": "none"}, {}),
        (
            {"think": True, "chat_template_kwargs": {"thinking": False, "budget": 5}},
            {"enable_thinking": True, "thinking": False, "budget": 5},
        ),
    ],
)
def test_a_row_sets_variables_of_the_chat_template(
    tmp_path: Path, fields: dict[str, Any], expected: dict[str, Any]
) -> None:
    assert row_of(tmp_path, **fields).variables == expected


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, 2),
        ({"logprobs": None}, 2),
        ({"logprobs": 0}, 0),
        ({"logprobs": True}, 0),
        ({"logprobs": True, "top_logprobs": 3}, 3),
        ({"logprobs": False}, None),
    ],
)
def test_logprobs_are_a_number_or_a_switch_with_a_number(
    tmp_path: Path, fields: dict[str, Any], expected: int | None
) -> None:
    assert row_of(tmp_path, **fields).options.n_logprobs == expected


def test_an_id_is_a_string_a_number_or_the_line(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, b'{"prompt": "a", "id": "x"}', b"", b'{"prompt": "b"}', b'{"prompt": "c", "id": 0.5}')
    assert [row.id for row in rows] == ["x", 3, 0.5]
    assert [row.line for row in rows] == [1, 3, 4]


def test_blank_lines_windows_newlines_and_a_byte_order_mark_are_no_rows(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, b"\xef\xbb\xbf" + GOOD + b"\r", b"\r", b"   ", GOOD + b"\r", b"")
    assert [(type(row), row.line) for row in rows] == [(Row, 1), (Row, 4)]


BAD_LINES: list[tuple[bytes | dict[str, Any], str]] = [
    (b"{oops", "not readable as JSON: .* at column 2$"),
    (b'{"prompt": "\xff"}', "not readable as JSON"),
    (b'{"prompt": "a", "prompt": "b"}', "prompt is there twice"),
    (b'{"prompt": "a", "temperature": NaN}', "NaN is not a JSON number"),
    (b'{"prompt": "a", "temperature": 1e999}', "^temperature: Infinity is not a number"),
    (b"[" * 100_000, "not readable as JSON"),
    (b"[1, 2]", "holds no JSON object"),
    ({}, "one of prompt, prompt_ids, messages; found none"),
    ({"prompt": "a", "messages": []}, "found prompt and messages"),
    ({"prompt": ""}, "^prompt: is empty"),
    ({"prompt_ids": []}, "^prompt_ids: is empty"),
    ({"prompt": 5}, "^prompt: 5 is not a list of whole numbers"),
    ({"prompt": ["a", "b"]}, "^prompt: "),
    ({"prompt_ids": [1, -1]}, "^prompt_ids: "),
    ({"messages": []}, "^messages: is not a list of messages"),
    ({"messages": ["hi"]}, "^messages: a message is an object with a role"),
    ({"messages": [{"role": "user"}]}, "^messages: the content of a message is not text"),
    ({"messages": [{"role": "assistant", "content": None}]}, "^messages: the content of a message is not text"),
    ({"messages": [{"role": "assistant", "tool_calls": []}]}, "^messages: the content of a message is not text"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "type image_url is not text"),
    ({"messages": [{"role": "user", "content": [5]}]}, "not text"),
    ({"prompt_ids": [1], "system": "Be kind."}, "^system: cannot be combined with token ids"),
    ({"messages": [{"role": "system", "content": "a"}], "system": "b"}, "^system: the messages already begin with"),
    ({"prompt": "a", "temprature": 1}, r"^temprature: unknown field; did you mean temperature\?"),
    ({"prompt": "a", "qqq": 1}, "^qqq: unknown field$"),
    ({"prompt": "a", "temperature": "hot"}, '^temperature: "hot" is not a number'),
    ({"prompt": "a", "temperature": -1}, "^temperature: -1 is not a number of at least 0"),
    ({"prompt": "a", "temperature": True}, "^temperature: true is not"),
    ({"prompt": "a", "top_p": 0}, "^top-p must be from 1.2e-38 to 1, not 0.0"),
    ({"prompt": "a", "temperature": 1e-60}, "^temperature must be 0, or from 1.2e-38 to 3.4e[+]38, not 1e-60"),
    ({"prompt": "a", "repetition_penalty": 1e-300}, "^repetition-penalty must be from 1e-06 to 1e[+]06, not 1e-300"),
    ({"prompt": "a", "top_k": 2**32 + 1}, "^top_k: 4294967297 is not a whole number from 0 to 2147483647"),
    ({"prompt": "a", "n": 2**32 + 1}, "^n: 4294967297 is not a whole number from 1 to 65536"),
    ({"prompt": "a", "max_tokens": 2**32 + 1}, "^max_tokens: 4294967297 is not a whole number from 1 to"),
    ({"prompt": "a", "top_k": 1.5}, "^top_k: 1.5 is not a whole number"),
    ({"prompt": "a", "max_new_tokens": 0}, "^max_new_tokens: 0 is not a whole number"),
    ({"prompt": "a", "max_tokens": 1, "max_new_tokens": 2}, "^max_tokens: means the same as max_new_tokens"),
    ({"prompt": "a", "n": 0}, "^n: 0 is not"),
    ({"prompt": "a", "seed": -1}, "^seed: -1 is not"),
    ({"prompt": "a", "seed": 2**64}, "^seed: "),
    ({"prompt": "a", "stop": ["x", ""]}, "^stop: needs at least one character"),
    ({"prompt": "a", "stop": 5}, "^stop: 5 is not a list of strings"),
    ({"prompt": "a", "logprobs": -1}, "^logprobs: -1 is not"),
    ({"prompt": "a", "ignore_eos": 1}, "^ignore_eos: 1 is not true or false"),
    ({"prompt": "a", "id": True}, "^id: is neither a string nor a number"),
    ({"prompt": "a", "id": {}}, "^id: is neither"),
    (b'{"prompt": "a", "id": -1e999}', "^id: is neither"),
    ({"prompt": "a", "stream": True}, "^stream: true is not supported"),
    ({"prompt": "a", "tools": [5]}, "^tools: is not a list of objects"),
    ({"prompt": "a", "tools": "sum"}, "^tools: is not a list of objects"),
    ({"prompt": "a", "tool_choice": "required"}, '^tool_choice: "required" is not supported'),
    ({"prompt": "a", "think": "yes"}, '^think: "yes" is not true or false'),
    ({"prompt": "a", "reasoning_effort": 3}, "^reasoning_effort: 3 is not a string"),
    ({"prompt": "a", "chat_template_kwargs": []}, "^chat_template_kwargs: "),
    ({"prompt": "a", "chat_template_kwargs": {"messages": []}}, "^messages: is no variable of a chat template"),
    ({"prompt_ids": [1], "think": False}, "^prompt_ids: cannot be combined with variables of a chat template"),
    ({"custom_id": "a", "method": "GET", "body": {"prompt": "a"}}, "^method: GET is not POST"),
    ({"custom_id": "a", "url": "/v1/embeddings", "body": {"prompt": "a"}}, "^url: /v1/embeddings is not"),
    ({"custom_id": "a", "prompt": "a", "body": {"prompt": "a"}}, "^prompt: is outside of the body"),
    ({"custom_id": "a", "body": 5}, "^body: 5 is not an object"),
    ({"custom_id": "a", "body": {"prompt": "a", "n": "two"}}, '^n: "two" is not'),
]


@pytest.mark.parametrize(("line", "reason"), BAD_LINES)
def test_a_bad_row_says_what_is_wrong_and_the_rest_is_read(
    tmp_path: Path, line: bytes | dict[str, Any], reason: str
) -> None:
    found = reason_of(tmp_path, line)
    assert re.search(reason, found), found


def test_a_bad_row_keeps_its_id(tmp_path: Path) -> None:
    _, bad = rows_of(tmp_path, GOOD, b'{"custom_id": "mine", "body": {}}')
    assert isinstance(bad, BadRow) and bad.id == "mine"


def test_an_id_that_comes_twice_names_the_line_that_had_it_first(tmp_path: Path) -> None:
    _, second = rows_of(tmp_path, b'{"prompt": "a", "id": "x"}', b'{"prompt": "b", "id": "x"}')
    assert isinstance(second, BadRow) and second.reason == 'id: "x" is already used on line 1'
    assert all(isinstance(row, Row) for row in rows_of(tmp_path, b'{"prompt": "a", "id": "2"}', GOOD))


@pytest.mark.parametrize(
    ("lines", "says"), [((b"",), "has no rows"), ((b"Once upon a time", b"there was"), "has no valid rows")]
)
def test_a_file_without_a_row_is_refused_as_a_whole(tmp_path: Path, lines: tuple[bytes, ...], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        rows_of(tmp_path, *lines)


def test_a_file_that_is_not_there_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"no\.jsonl"):
        read_rows(tmp_path / "no.jsonl", DEFAULTS)


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        (GenerationOptions(Sampling(top_p=2)), "--top-p"),
        (GenerationOptions(max_new_tokens=0), "--max-new-tokens"),
        (GenerationOptions(num_samples=0), "--num-samples"),
        (GenerationOptions(n_logprobs=-1), "--logprobs"),
        (GenerationOptions(stop=("",)), "--stop"),
    ],
)
def test_a_default_out_of_range_names_its_flag(options: GenerationOptions, flag: str) -> None:
    with pytest.raises(UsageError, match=flag):
        options.check()
