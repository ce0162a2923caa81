"""What a stream can show: escapes only on a terminal, and never a control character of a model's making."""

import os
from typing import Final, TextIO

_CONTROL_PICTURES = 0x2400  # the Unicode block that draws C0 characters: ESC becomes U+241B
_VISIBLE: Final = {
    **{code: chr(_CONTROL_PICTURES + code) for code in range(0x20) if chr(code) not in "\n\t"},
    0x7F: "\N{SYMBOL FOR DELETE}",
    **dict.fromkeys(range(0x80, 0xA0), "\N{REPLACEMENT CHARACTER}"),  # C1: 0x9B is an ESC [ in one byte
}


def shows_escapes(stream: TextIO) -> bool:
    """Whether colours and cursor movements are welcome on the stream: a terminal, not a dumb one, without NO_COLOR."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def printable(text: str) -> str:
    """The text with its control characters made visible, all but newline and tab.

    A model may write an ESC, and a file's name may hold one; on a terminal it would act instead of being read.
    """
    return text.translate(_VISIBLE)


def styled(text: str, code: str, stream: TextIO) -> str:
    """The text in an SGR style, such as "2" for dim, where the stream shows escapes."""
    return f"\x1b[{code}m{text}\x1b[0m" if shows_escapes(stream) else text
