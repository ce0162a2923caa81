"""The order in which finished records leave: as they finish, or as their rows stand in the file."""

from collections import deque
from collections.abc import Iterable

from gptfast_cli.core.batch.records import line_of
from gptfast_cli.core.events import Record


class Order:
    """Takes records as they finish and lets go of those whose turn it is.

    `lines` are those of the rows to come, each record leaving after that of the row before it; None lets all go.
    """

    def __init__(self, lines: Iterable[int] | None) -> None:
        self._due = None if lines is None else deque(lines)
        self._held: dict[int, Record] = {}  # by line

    @property
    def held(self) -> list[Record]:
        """The records that wait for others, by line."""
        return [self._held[line] for line in sorted(self._held)]

    def put(self, record: Record) -> list[Record]:
        """Take a record; return those that leave now."""
        if self._due is None:
            return [record]
        self._held[line_of(record)] = record
        leaving = []
        while self._due and self._due[0] in self._held:
            leaving.append(self._held.pop(self._due.popleft()))
        return leaving
