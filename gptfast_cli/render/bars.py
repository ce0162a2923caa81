"""Bars of a chart in text: eighths of a character from Unicode's blocks, or hash signs where a stream has no blocks."""

import math
from typing import Final, TextIO

_EIGHTHS: Final = "".join(chr(0x2590 - n) for n in range(1, 9))  # from one eighth of a block to a whole one


def bar(share: float, width: int, *, blocks: bool) -> str:
    """A bar of a share 0..1, padded to the width."""
    if not math.isfinite(share):
        return " " * width
    if not blocks:
        return f"{'#' * round(share * width):<{width}}"
    whole, rest = divmod(round(share * width * 8), 8)
    return f"{_EIGHTHS[-1] * whole + (_EIGHTHS[rest - 1] if rest else ''):<{width}}"


def shows_blocks(stream: TextIO) -> bool:
    """Whether the stream's encoding has the blocks; a stream without an encoding takes any text."""
    try:
        _EIGHTHS.encode(stream.encoding or "utf-8")
    except UnicodeEncodeError:
        return False
    return True
