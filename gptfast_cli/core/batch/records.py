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


def line_of(record: Record) -> int:
    """The line that a record's row stands on."""
    line = record.fields["line"]
    assert isinstance(line, int)
    return line
