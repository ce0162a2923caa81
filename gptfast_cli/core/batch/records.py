"""What is told of a row once it is over."""

from collections.abc import Mapping

from gptfast_cli.core.batch.rows import BadRow, Row
from gptfast_cli.core.events import Record


def record_of(row: Row | BadRow, told: Mapping[str, object], identity: str) -> Record:
    """The record of a row: whose it is, what is told of it, and what it depended on."""
    return Record({"id": row.id, "line": row.line, **told, "request": identity})


def refusal(row: Row | BadRow, reason: str, identity: str) -> Record:
    """The record of a row that cannot be answered."""
    return record_of(row, {"error": {"message": reason}}, identity)


def reason_of(record: Record) -> str | None:
    """Why a row was not answered; None where it was."""
    match record.fields:
        case {"error": {"message": str(reason)}}:
            return reason
    return None


def tokens_of(record: Record) -> tuple[int, int]:
    """Tokens of a row's prompt, and those that were generated for it; none where it was not answered."""
    match record.fields:
        case {"samples": list(samples), "prompt_tokens": int(n_prompt)}:
            return n_prompt, sum(len(sample["token_ids"]) for sample in samples)
        case {"token_ids": [*token_ids], "prompt_tokens": int(n_prompt)}:
            return n_prompt, len(token_ids)
    return 0, 0


def line_of(record: Record) -> int:
    """The line that a record's row stands on."""
    line = record.fields["line"]
    assert isinstance(line, int)
    return line
