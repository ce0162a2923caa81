"""One line of status in the last row of a terminal, below text that goes on scrolling above it.

The last row is taken out of the scrolling region (DECSTBM, as VT100 and all since know it), so that text streams,
wraps and scrolls as on a terminal one row shorter. The cursor is saved and restored around each update (DECSC, DECRC);
whoever writes the text keeps it from resting behind the last column, a place that some terminals do not restore.
"""

import os
from typing import TextIO

_SAVE, _RESTORE = "\x1b7", "\x1b8"
_ERASE_LINE, _UP = "\x1b[2K", "\x1b[1A"
_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"
_WHOLE_SCREEN_SCROLLS = "\x1b[r"
_LEAST_ROWS = 4  # below that, the text needs the row more than we do


class BottomRow:
    """The status row of one terminal, from `open` to `close`."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._rows = 0  # the terminal's height while the row is taken, 0 while it is not

    def open(self) -> None:
        """Take the last row; the cursor must stand at the start of a line."""
        # the line feed makes room where the cursor stands in the last row; elsewhere moving up undoes it
        self._stream.write("\n" + _UP)
        self._take_row()

    def update(self, status: str) -> None:
        """Replace the status, cut to the terminal's width."""
        columns, rows = os.get_terminal_size(self._stream.fileno())
        if rows != self._rows:  # the window was resized
            self._take_row()
        if self._rows:
            line = f"{_at(rows)}{_ERASE_LINE}{_DIM}{status[: columns - 1]}{_PLAIN}"
            self._stream.write(_SAVE + line + _RESTORE)
            self._stream.flush()

    def close(self) -> None:
        """Give the row back, empty."""
        if self._rows:
            self._stream.write(_SAVE + _WHOLE_SCREEN_SCROLLS + _at(self._rows) + _ERASE_LINE + _RESTORE)
            self._stream.flush()
            self._rows = 0

    def _take_row(self) -> None:
        rows = os.get_terminal_size(self._stream.fileno()).lines
        self._rows = rows if rows >= _LEAST_ROWS else 0
        if self._rows:
            self._stream.write(f"{_SAVE}\x1b[1;{rows - 1}r{_RESTORE}")  # setting the region moves the cursor
            self._stream.flush()


def _at(row: int) -> str:
    """Move the cursor to the start of a row."""
    return f"\x1b[{row};1H"
