"""Long texts cut as Llama 3's own code cuts them, so that no run of characters takes more than linear time.

Wherever a text is cut, no token spans the cut: the cuts belong to the format, and another place gives other ids.
Source: https://github.com/meta-llama/llama-models, models/llama3/tokenizer.py.
"""

import re
from collections.abc import Iterator

MAX_CHARACTERS = 400_000
"""The longest piece."""

MAX_RUN = 25_000
"""The most characters of a piece that follow one another and are all whitespace, or all none."""

# as many whole runs as follow one another, then the beginning of a run that is too long; nothing is tried twice
_PIECE = re.compile(
    rf"(?:\S{{1,{MAX_RUN}}}+(?!\S)|\s{{1,{MAX_RUN}}}+(?!\s))*+(?:\S{{{MAX_RUN}}}|\s{{{MAX_RUN}}})?", re.DOTALL
)


def pieces(text: str) -> Iterator[str]:
    """The pieces of a text, from left to right."""
    for start in range(0, len(text), MAX_CHARACTERS):
        yield from filter(None, _PIECE.findall(text[start : start + MAX_CHARACTERS]))
