"""Errors for the user: at most five lines on stderr."""

import errno
from collections.abc import Collection
from pathlib import Path
from typing import TextIO

from gptfast_cli.core.errors import DiskFullError, GptFastError, OutOfMemoryError, is_out_of_memory
from gptfast_cli.render.terminal import printable, styled

_MOST_LINES = 5
_BOLD_RED = "1;31"
_SMALLER = ("--max-new-tokens", "--batch-size", "--max-context", "--prompt-len", "--gen-len", "--depth")
"""Options of which a smaller value takes less memory."""


def named(error: Exception, home: Path | None = None, flags: Collection[str] = ()) -> GptFastError:
    """The error as a GptFastError: out of memory and disk full as their classes, an unforeseen one as internal error.

    A file of `home`, which is `$GPTFAST_HOME`, may be kept elsewhere; `flags` are those that the command has.
    """
    match error:
        case GptFastError():
            return error
        case _ if is_out_of_memory(error):
            return OutOfMemoryError(f"Not enough memory.\n{_first_line(error)}", _less_memory(flags))
        case OSError(errno=errno.ENOSPC | errno.EDQUOT):
            return DiskFullError(f"No space left on the disk{_where(error)}.", "Free some space and run it again.")
        case OSError(strerror=str(reason)):
            is_at_home = home is not None and Path(str(error.filename)).is_relative_to(home)
            hint = "GPTFAST_HOME can name another folder to keep such files in." if is_at_home else ""
            return GptFastError(f"{reason}{_where(error)}.", hint)
        case _:
            return GptFastError(
                f"Internal error: {type(error).__name__}: {_first_line(error)}",
                "This is a fault in gptfast; --debug shows where it happened.",
            )


def write_error(error: GptFastError, stream: TextIO) -> None:
    """Write message and hint in at most five lines; a long message is cut, the hint is not."""
    hint = [f"hint: {line}" for line in error.hint.splitlines()[:2]]
    what, *why = error.message.splitlines()[: _MOST_LINES - len(hint)] or [type(error).__name__]
    lines = [what, *(f"       {line}" for line in why), *hint]
    stream.write(styled("error:", _BOLD_RED, stream) + " " + "".join(f"{printable(line)}\n" for line in lines))


def _less_memory(flags: Collection[str]) -> str:
    ways = ["a smaller model", *(f"a smaller {flag}" for flag in _SMALLER if flag in flags)]
    return f"Try {' or '.join([', '.join(ways[:-1]), ways[-1]] if len(ways) > 1 else ways)}."


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "")


def _where(error: OSError) -> str:
    return f": {error.filename}" if error.filename else ""
