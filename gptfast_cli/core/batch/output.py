"""Where finished records go: on to whoever shows them, or into a file that a killed run leaves for its next one."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from gptfast_cli.core.batch.order import Order
from gptfast_cli.core.batch.record_file import RecordFile
from gptfast_cli.core.errors import UsageError
from gptfast_cli.core.events import Record


@dataclass(frozen=True, slots=True)
class Found:
    """What matters of a record that an earlier run has written."""

    seed: int | None  # of its answer
    is_bad: bool


class Output(Protocol):
    """Takes records as they finish."""

    @property
    def found(self) -> Mapping[int, Found]:
        """The records that were there before, by the line of their rows."""
        ...

    def put(self, record: Record) -> list[Record]:
        """Take a record; return those whose turn it is, which are safe by then."""
        ...

    def unsaved(self) -> list[Record]:
        """Records that are finished, and nowhere yet because their turn has not come."""
        ...


@contextlib.contextmanager
def open_output(path: Path | None, identities: Mapping[int, str], *, in_order: bool) -> Iterator[Output]:
    """The output of a run over rows with these identities, by line; None writes no file.

    Raises UsageError for a file that is no output of these rows, or that another run is writing.
    """
    if path is None:
        yield _Passing(Order(identities if in_order else None))
        return
    is_new = not path.exists()
    waiting_path = path.with_name(f"{path.name}.waiting")
    with (
        contextlib.closing(RecordFile(path)) as records,
        contextlib.closing(RecordFile(waiting_path, follow=False)) as waiting,
    ):
        output = _File(records, waiting, identities, in_order=in_order)
        output.take_up_waiting(identities, valid=not is_new)
        try:
            yield output
        finally:
            output.tidy()


class _Passing:
    """No file: records leave when it is their turn, and that is all."""

    def __init__(self, order: Order) -> None:
        self.found: Mapping[int, Found] = {}
        self._order = order

    def put(self, record: Record) -> list[Record]:
        return self._order.put(record)

    def unsaved(self) -> list[Record]:
        return self._order.held


class _File:
    """A file of records; one that waits for its turn is kept in a file beside it, so that no kill can lose it."""

    def __init__(
        self, records: RecordFile, waiting: RecordFile, identities: Mapping[int, str], *, in_order: bool
    ) -> None:
        self._records = records
        self._waiting = waiting
        self.found: dict[int, Found] = {}
        for record in records.read():
            self._check(record, identities)
            self.found[record["line"]] = _found(record)
        lines = list(identities)
        n_found = len(self.found)
        if in_order and list(self.found) != lines[:n_found]:
            raise UsageError(
                f"{records.path}: its records are not in the order of the rows.",
                "It was begun with --unordered: give that again, or another --output.",
            )
        self._order = Order(lines[n_found:] if in_order else None)

    def take_up_waiting(self, identities: Mapping[int, str], *, valid: bool) -> None:
        """Go on with the records that an earlier run left waiting; those of another run are dropped."""
        for record in self._waiting.read():
            line = record["line"]
            if valid and line not in self.found and identities.get(line) == record["request"]:
                self.found[line] = _found(record)
                self._write(self._order.put(Record(record)))
        if not self._order.held:
            self._waiting.clear()

    def put(self, record: Record) -> list[Record]:
        leaving = self._order.put(record)
        self._write(leaving)
        if not self._order.held:
            self._waiting.clear()
        elif record not in leaving:
            self._waiting.append(record.fields)
        return leaving

    def unsaved(self) -> list[Record]:
        return []

    def tidy(self) -> None:
        """Leave no second file behind where it has no use."""
        if not self._order.held:
            self._waiting.remove()

    def _write(self, leaving: list[Record]) -> None:
        for record in leaving:
            self._records.append(record.fields)

    def _check(self, record: Mapping[str, Any], identities: Mapping[int, str]) -> None:
        line = record["line"]
        if line in self.found or identities.get(line) != record["request"]:
            raise UsageError(
                f"{self._records.path}: its record of line {line} comes from another prompt, or from other options.",
                "Give the model, the prompts and the options that it was begun with, or another --output.",
            )


def _found(record: Mapping[str, Any]) -> Found:
    return Found(record.get("seed"), "error" in record)
