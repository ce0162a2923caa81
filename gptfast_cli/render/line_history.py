"""What was typed in earlier sessions, in a file that only its owner may read.

One JSON string a line, so that an entry of many lines stays one; an entry is there as soon as it was typed.
"""

import contextlib
import json
import os
import secrets
from pathlib import Path

_OWNER_ONLY = 0o600
_APPEND = os.O_WRONLY | os.O_CREAT | os.O_APPEND
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL


class LineHistory:
    """A file of entries, the newest last. A history that cannot be read or written is no reason to stop."""

    def __init__(self, path: Path, *, most_entries: int = 1000) -> None:
        self._path = path
        self._most_entries = most_entries

    def entries(self) -> list[str]:
        """The entries, the oldest first; lines that are damaged are passed over."""
        return [entry for line in self._lines()[-self._most_entries :] if (entry := _parsed(line))]

    def add(self, entry: str) -> None:
        """Append an entry."""
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            _write(self._path, [json.dumps(entry)], _APPEND)

    def shorten(self) -> None:
        """Drop the oldest entries beyond the bound."""
        lines = self._lines()
        if len(lines) > self._most_entries:
            sibling = self._path.with_name(f".{self._path.name}.{secrets.token_hex(4)}")
            with contextlib.suppress(OSError):
                _write(sibling, lines[-self._most_entries :], _NEW)
                sibling.replace(self._path)

    def _lines(self) -> list[str]:
        try:
            return self._path.read_text(encoding="ascii", errors="replace").splitlines()
        except OSError:
            return []


def _write(path: Path, lines: list[str], flags: int) -> None:
    with os.fdopen(os.open(path, flags, _OWNER_ONLY), "a", encoding="ascii") as file:
        file.writelines(f"{line}\n" for line in lines)


def _parsed(line: str) -> str:
    """The entry of a line; empty for a damaged one."""
    try:
        entry = json.loads(line)
    except ValueError:
        return ""
    return entry if isinstance(entry, str) else ""
