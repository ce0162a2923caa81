"""The prompt of a generation: from the argument, a file, token ids, stdin, or synthetic."""

import os
import select
import stat
import sys
from dataclasses import dataclass
from pathlib import Path

from gptfast_cli.core.errors import NotFoundError, UsageError
from gptfast_cli.core.models.process_group import ProcessGroup

DEFAULT = "Once upon a time"
SECONDS_TO_WAIT = 5.0
_SOURCES = "PROMPT, --prompt-file, --prompt-ids and --prompt-length"


@dataclass(frozen=True, slots=True)
class PromptSources:
    """The places where a command line can give a prompt; at most one of them may be used."""

    argument: str | None  # text, or "-" for stdin
    file: Path | None
    ids: str | None  # token ids with commas between
    length: int | None  # of a synthetic prompt

    def read(self, *, wait_seconds: float = SECONDS_TO_WAIT) -> str | tuple[int, ...] | None:
        """The text or token ids; None stands for a synthetic prompt.

        Without a source it is the content of a pipe or file on stdin, else DEFAULT; a pipe that has no data within
        `wait_seconds` is ignored.

        Raises UsageError for more than one source, invalid token ids and bytes that are not UTF-8; NotFoundError for
        a missing file.
        """
        given = [source for source in (self.argument, self.file, self.ids, self.length) if source is not None]
        if len(given) > 1:
            raise UsageError("More than one prompt is given.", f"Use only one of {_SOURCES}.")
        if self.file is not None:
            return _without_newline(_read_file(self.file))
        if self.ids is not None:
            return _parse_ids(self.ids)
        if self.length is not None:
            return None
        if self.argument == "-":
            return _without_newline(_read_stdin())
        if self.argument is None:
            return (_without_newline(_read_stdin()) if _stdin_has_input(wait_seconds) else "") or DEFAULT
        return self.argument


def shared_prompt(sources: PromptSources, group: ProcessGroup) -> str | tuple[int, ...] | None:
    """What `read` returns on rank 0, on every rank."""
    own = sources.read() if group.rank == 0 else None
    shared = group.broadcast(list(own) if isinstance(own, tuple) else own)
    return tuple(shared) if isinstance(shared, list) else shared


def _read_file(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise NotFoundError(f"The prompt file {str(path)!r} does not exist.") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"The prompt file {str(path)!r} is not text in UTF-8.") from error


def _stdin_has_input(wait_seconds: float) -> bool:
    """Whether stdin is a file, or a pipe into which something is written or which ends.

    A pipe may be inherited from a program that never writes into it, hence the time limit.
    """
    try:
        kind = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError):  # closed, or no file of the system
        return False
    if stat.S_ISREG(kind):
        return True
    if not (stat.S_ISFIFO(kind) or stat.S_ISSOCK(kind)):
        return False
    try:
        is_ready = bool(select.select([sys.stdin], [], [], wait_seconds)[0])
    except OSError:  # Windows waits for sockets alone
        return True
    if not is_ready:
        sys.stderr.write(f"No input on stdin within {wait_seconds:g} s; use - as PROMPT to wait for it.\n")
    return is_ready


def _read_stdin() -> str:
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError("The prompt on stdin is not text in UTF-8.") from error


def _without_newline(text: str) -> str:
    """The text without the newline that `echo` and editors end it with: the model should go on in the same line."""
    return text.removesuffix("\n").removesuffix("\r")


def _parse_ids(listed: str) -> tuple[int, ...]:
    try:
        return tuple(int(token_id) for token_id in listed.split(","))
    except ValueError as error:
        raise UsageError(
            f"--prompt-ids must be token ids with commas between, not {listed!r}.", "--prompt-ids 1,2,3"
        ) from error
