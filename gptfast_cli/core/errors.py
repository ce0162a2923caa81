"""Errors for the user: what, why, and the next command to try.

Each kind of error is one exit code of the command contract. Only errors a person can act on live here;
a broken invariant of our own is an `assert`.
"""

from enum import IntEnum
from typing import ClassVar, Final


class ExitCode(IntEnum):
    """The status a command ends with."""

    OK = 0
    FAILURE = 1
    USAGE = 2
    NOT_FOUND = 3
    NOT_AUTHORIZED = 4
    NETWORK = 5
    CORRUPT = 6
    OUT_OF_MEMORY = 7
    DISK_FULL = 8
    INTERRUPTED = 130
    TERMINATED = 143


_MOST_LINE_CHARACTERS: Final = 1000


def _shortened(line: str) -> str:
    """A line without its middle where it is long: names and values in it may come from a file, a megabyte each."""
    if len(line) <= _MOST_LINE_CHARACTERS:
        return line
    kept = _MOST_LINE_CHARACTERS // 2
    return f"{line[:kept]} … {line[-kept:]}"


class GptFastError(Exception):
    """A failure with a message for the user and, where there is one, the next thing to try."""

    exit_code: ClassVar[ExitCode] = ExitCode.FAILURE

    def __init__(self, message: str, hint: str = "") -> None:
        message = "\n".join(map(_shortened, message.split("\n")))
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(GptFastError):
    """An option or argument that cannot be meant."""

    exit_code = ExitCode.USAGE


class NotFoundError(GptFastError):
    """A model, file or name that is not there."""

    exit_code = ExitCode.NOT_FOUND


class NotAuthorizedError(GptFastError):
    """Something that is kept from this person: a login is missing, wrong, or not allowed there."""

    exit_code = ExitCode.NOT_AUTHORIZED


class NetworkError(GptFastError):
    """Another machine that cannot be reached, breaks off, or does not do its part."""

    exit_code = ExitCode.NETWORK


class CorruptError(GptFastError):
    """A file that is damaged, inconsistent or unsafe to read."""

    exit_code = ExitCode.CORRUPT


class OutOfMemoryError(GptFastError):
    """More memory was needed than the device has."""

    exit_code = ExitCode.OUT_OF_MEMORY


class DiskFullError(GptFastError):
    """No space was left where an output was being written."""

    exit_code = ExitCode.DISK_FULL


# PyTorch's CPU allocator raises a bare RuntimeError; CUDA and MPS raise kinds of their own, derived from it
_OUT_OF_MEMORY_TEXTS: Final = ("can't allocate memory", "out of memory")


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that there was not enough memory, in whatever words."""
    if isinstance(error, RuntimeError):
        return any(text in str(error) for text in _OUT_OF_MEMORY_TEXTS)
    return isinstance(error, MemoryError | OutOfMemoryError)
