"""The rows of a file of prompts: a JSON object on each line, in our own form or in that of an OpenAI batch file.

A line that is no row spoils nothing else: it becomes a BadRow, which knows what is wrong with it. Blank lines are
skipped, but counted, so that a row's line is the one that an editor shows.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from gptfast_cli.core.batch.options import AnswerOptions
from gptfast_cli.core.batch.row_fields import check_names, own_options, row_body
from gptfast_cli.core.batch.row_prompt import Prompt, own_prompt
from gptfast_cli.core.errors import CorruptError, GptFastError, NotFoundError, UsageError
from gptfast_cli.core.fields import Fields, parse_fields
from gptfast_cli.core.model.collective import ALONE, Collective

RowId: TypeAlias = str | int | float

_BYTES = "latin-1"  # a character for each byte: a line may be no UTF-8
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Row:
    """A prompt and how it is to be answered; `index` counts the rows before it, bad ones too."""

    line: int  # from 1
    digest: str  # SHA-256 of the line
    index: int
    id: RowId
    prompt: Prompt
    options: AnswerOptions


@dataclass(frozen=True, slots=True)
class BadRow:
    """A line that cannot be answered, and why; the id where one can be read."""

    line: int  # from 1
    digest: str  # SHA-256 of the line
    id: RowId | None
    reason: str


def read_rows(path: Path, defaults: AnswerOptions, together: Collective = ALONE) -> list[Row | BadRow]:
    """All rows of a file, what they leave open being filled in from the defaults. Rank 0 reads it for all.

    Raises NotFoundError where there is no file, UsageError where it holds no row or nothing but bad ones.
    """
    rows: list[Row | BadRow] = []
    lines_by_id: dict[str, int] = {}
    content: list[Any] = [[n, line.decode(_BYTES)] for n, line in _lines(path)] if together.rank == 0 else []
    for number, text in together.agree(content):
        line = text.encode(_BYTES)
        row = _parse(line, f"{path.name}:{number}", number=number, index=len(rows), defaults=defaults)
        if isinstance(row, Row) and (first := lines_by_id.setdefault(json.dumps(row.id), number)) != number:
            row = BadRow(number, row.digest, row.id, f"id: {json.dumps(row.id)} is that of line {first} already")
        rows.append(row)
    if not rows:
        raise UsageError(f"{path.name}: has no rows.", 'A row is a line such as {"prompt": "Once upon a time"}')
    if all(isinstance(row, BadRow) for row in rows):
        assert isinstance(rows[0], BadRow)
        raise UsageError(
            f"{path.name}: none of its lines is a row.\nLine {rows[0].line}: {rows[0].reason}",
            'A row is a line such as {"prompt": "Once upon a time"}',
        )
    return rows


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank, and their numbers."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                content = line.removeprefix(_BYTE_ORDER_MARK) if number == 1 else line
                if content.strip():
                    yield number, content
    except FileNotFoundError as error:
        raise NotFoundError(f"There is no file of prompts {str(path)!r}.") from error


def _parse(line: bytes, where: str, *, number: int, index: int, defaults: AnswerOptions) -> Row | BadRow:
    digest = hashlib.sha256(line.strip()).hexdigest()
    row_id: RowId | None = None
    try:
        fields = parse_fields(line, where)
        row_id = _id(fields, default=number)
        body = row_body(fields)
        check_names(body)
        return Row(number, digest, index, row_id, own_prompt(body), own_options(body, defaults))
    except (CorruptError, UsageError) as error:
        return BadRow(number, digest, row_id, _reason(error, where))


def _reason(error: GptFastError, where: str) -> str:
    """What is wrong with a row, in words that were made for a file or for the command line."""
    reason = error.message.removeprefix(f"{where}: ").removeprefix("--")
    return re.sub(r": line 1 (column \d+) \(char \d+\)$", r" at \1", reason)  # of this row, not of the file


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
