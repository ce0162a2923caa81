"""Special tokens written out in a text: where a text is cut before a library, which does not know them, sees it."""

import re
from collections.abc import Iterator, Mapping


class WrittenOut:
    """Tokens that are matched in a text as a whole; of several that begin alike, the longest."""

    def __init__(self, ids: Mapping[str, int]) -> None:
        self._ids = ids
        longest_first = sorted(filter(None, ids), key=len, reverse=True)
        self._expression = re.compile(f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})")

    def split(self, text: str) -> Iterator[str | int]:
        """The text from left to right: a token as its id, and what lies between as text, never empty."""
        for n, part in enumerate(self._expression.split(text)):
            if n % 2:
                yield self._ids[part]
            elif part:
                yield part
