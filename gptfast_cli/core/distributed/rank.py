"""The rank of this process, how its failure reaches the launcher, and its end with the launcher.

A rank ends when its parent does: by prctl(2) PR_SET_PDEATHSIG on Linux, elsewhere by a thread that polls the parent's
process id once a second.
"""

import ctypes
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping, MutableMapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from gptfast_cli.core.errors import ExitCode, GptFastError, UsageError

FOLDER: Final = "GPTFAST_RANKS"
"""Environment variable: the folder of our launcher, for rendezvous and failures."""

PARENT: Final = "GPTFAST_PARENT"
"""Environment variable: process id of the gptfast process that started this one."""

TORCHRUN: Final = "TORCHELASTIC_RUN_ID"
"""Environment variable that torchrun sets; RANK alone may be set for other reasons."""


_FAILURE = ".failure"
_MOST_DIGITS = 9
_LAUNCHERS = "torchrun sets these variables for each rank; on one machine --tp N is enough."


class LostRankError(GptFastError):
    """A collective failed because another rank has ended; that rank reports the reason."""


@dataclass(frozen=True, slots=True)
class Rank:
    """Rank `number` of `size`; on this machine, `local` of `n_local`."""

    number: int
    size: int
    local: int
    n_local: int


@dataclass(frozen=True, slots=True)
class Failure:
    """The error of a rank; `is_lost` if another rank caused it."""

    message: str
    hint: str
    exit_code: int
    is_lost: bool


def this_rank(environment: Mapping[str, str] = os.environ) -> Rank | None:
    """The rank of this process; None if no launcher started it.

    Raises UsageError if the launcher's variables are missing, not numbers, or contradictory.
    """
    if not is_rank(environment):
        return None
    rank = Rank(*(_number(environment, name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")))
    if not (0 <= rank.number < rank.size and 0 <= rank.local < rank.n_local <= rank.size):
        raise UsageError(
            f"RANK={rank.number} of WORLD_SIZE={rank.size}, LOCAL_RANK={rank.local} of LOCAL_WORLD_SIZE={rank.n_local}:"
            " there is no such rank.",
            _LAUNCHERS,
        )
    return rank


def is_rank(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether a launcher, torchrun or our own, has started this process."""
    return FOLDER in environment or TORCHRUN in environment


def _number(environment: Mapping[str, str], name: str) -> int:
    value = environment.get(name, "")
    if not (value.isascii() and value.isdecimal() and len(value) < _MOST_DIGITS):
        raise UsageError(f"{name}={value!r} is not the number of a rank, or of ranks.", _LAUNCHERS)
    return int(value)


def leave_failure(error: GptFastError) -> bool:
    """Pass an error to the launcher to report; False if there is none, and this process must report it."""
    try:
        rank = this_rank()
    except UsageError:  # that error is itself reported
        return False
    if rank is None:
        return False
    folder, is_lost = os.environ.get(FOLDER), isinstance(error, LostRankError)
    if folder is None:  # under torchrun
        return rank.number != 0 and is_lost
    failure = Failure(error.message, error.hint, int(error.exit_code), is_lost)
    file = Path(folder) / f"{rank.number}{_FAILURE}"
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(asdict(failure)), encoding="utf-8")
    partial.replace(file)  # atomic: a killed rank leaves no partial file
    return True


def failures_left(folder: Path) -> dict[int, Failure]:
    """Failures by rank number."""
    files = sorted(folder.glob(f"*{_FAILURE}"), key=lambda file: int(file.stem))
    return {int(file.stem): Failure(**json.loads(file.read_text(encoding="utf-8"))) for file in files}


def as_error(message: str, hint: str, exit_code: int) -> GptFastError:
    """An error of the class that has this exit code."""
    kinds = (kind for kind in GptFastError.__subclasses__() if kind.exit_code == exit_code != ExitCode.FAILURE)
    return next(kinds, GptFastError)(message, hint)


_PR_SET_PDEATHSIG = 1
_SECONDS_BETWEEN_LOOKS = 1.0


def end_with_parent(environment: MutableMapping[str, str] = os.environ) -> None:
    """End this rank or replica with its parent; the variable is removed so that child processes do not inherit it."""
    named = environment.pop(PARENT, None)
    if named is not None:
        _follow(int(named))
    elif TORCHRUN in environment:
        _follow(os.getppid())


def _follow(parent: int) -> None:
    if sys.platform == "linux" and ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) == 0:
        if os.getppid() != parent:  # it had ended already
            os.kill(os.getpid(), signal.SIGKILL)
    else:
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    os.kill(os.getpid(), signal.SIGKILL)
