"""An exception as a person meets it: at most five lines on stderr, and an exit code."""

import errno
from typing import TextIO

from gptfast_cli.core.errors import DiskFullError, GptFastError, OutOfMemoryError, is_out_of_memory
from gptfast_cli.render.terminal import printable, styled

_MOST_LINES = 5
_BOLD_RED = "1;31"
_SMALLER = "Try a smaller model, --max-new-tokens, --batch-size or --max-context."


def named(error: Exception) -> GptFastError:
    """The error as one of ours: memory and disk by their own kinds, what nobody foresaw as an internal error."""
    match error:
        case GptFastError():
            return error
        case _ if is_out_of_memory(error):
            return OutOfMemoryError(f"Not enough memory.\n{_first_line(error)}", _SMALLER)
        case OSError(errno=errno.ENOSPC | errno.EDQUOT):
            return DiskFullError(f"No space left on the disk{_where(error)}.", "Free some space and run it again.")
        case OSError(strerror=str(reason)):
            return GptFastError(f"{reason}{_where(error)}.")
        case _:
            return GptFastError(
                f"Internal error: {type(error).__name__}: {_first_line(error)}",
                "This is a fault in gptfast; --debug shows where it happened.",
            )


def write_error(error: GptFastError, stream: TextIO) -> None:
    """What went wrong, why, and what to try next: at most five lines, of which the hint is never the one cut."""
    hint = [f"hint: {line}" for line in error.hint.splitlines()[:2]]
    what, *why = error.message.splitlines()[: _MOST_LINES - len(hint)] or [type(error).__name__]
    lines = [what, *(f"       {line}" for line in why), *hint]
    stream.write(styled("error:", _BOLD_RED, stream) + " " + "".join(f"{printable(line)}\n" for line in lines))


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "")


def _where(error: OSError) -> str:
    return f": {error.filename}" if error.filename else ""
