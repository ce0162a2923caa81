"""Where running text leaves a terminal's cursor, so that a status row can be drawn below it at any time.

A character in the last column leaves the cursor there, its move to the next line still to come. Not every terminal
(tmux for one) remembers that when the cursor is saved and restored, and the next character would take the place of
the last. So the move is finished at once: a space goes to the next line, and a backspace makes room for the text.
"""

from rich.cells import cell_len

_TAB_COLUMNS = 8
_FINISH_MOVE = " \b"


class Cursor:
    """Follows text on lines of `columns` columns, from the start of a line."""

    def __init__(self, columns: int) -> None:
        self._columns = columns
        self._column = 0  # cells left of the cursor; `columns` while its move to the next line is still to come
        self._has_moved = False  # ahead of the text: it stands in a line that no character has begun

    def placed(self, text: str) -> str:
        """What to write for printable text, so that the cursor never stays behind the last column."""
        if not text:
            return ""
        if self._has_moved and text[0] == "\n":
            text = text[1:]  # that move has been made
        for character in text:
            self._follow(character)
        self._has_moved = self._column == self._columns
        if not self._has_moved:
            return text
        self._column = 0
        return text + _FINISH_MOVE

    def _follow(self, character: str) -> None:
        match character:
            case "\n":
                self._column = 0
            case "\t":
                stop = (self._column // _TAB_COLUMNS + 1) * _TAB_COLUMNS
                self._column = min(stop, self._columns - 1)  # a tab stays in its line
            case _:
                width = cell_len(character)
                fits = self._column + width <= self._columns
                self._column = self._column + width if fits else width
