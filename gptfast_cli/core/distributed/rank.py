"""Who this process is among the ranks of a run, how failures reach the launcher, and how ranks end with it.

On Linux the kernel sees to it (prctl(2), PR_SET_PDEATHSIG); elsewhere a thread looks once a second whether the parent
is still the same.
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
"""The variable that names our own launcher's folder: ranks meet in it, and leave there what they fail with."""

PARENT: Final = "GPTFAST_PARENT"
"""The variable that holds the id of the gptfast process that started this one."""

TORCHRUN: Final = "TORCHELASTIC_RUN_ID"
"""The variable by which a process knows that torchrun has started it: RANK alone may be set for other reasons."""


_FAILURE = ".failure"
_MOST_DIGITS = 9
_LAUNCHERS = "torchrun sets these variables for each rank; on one machine --tp N is enough."


class LostRankError(GptFastError):
    """Another rank is gone, so that this one cannot go on: the other has the reason."""


@dataclass(frozen=True, slots=True)
class Rank:
    """One of `size` processes; on this machine it is number `local` of `n_local`."""

    number: int
    size: int
    local: int
    n_local: int


@dataclass(frozen=True, slots=True)
class Failure:
    """What a rank failed with; `is_lost` where the reason is another rank's."""

    message: str
    hint: str
    exit_code: int
    is_lost: bool


def this_rank(environment: Mapping[str, str] = os.environ) -> Rank | None:
    """The rank of this process; None where no launcher has started it.

    Raises UsageError where the launcher's variables are missing, no numbers, or contradict one another.
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
    """Leave an error for the launcher to tell; False where there is none that would, and this process speaks."""
    try:
        rank = this_rank()
    except UsageError:  # which is what is to be said
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
    partial.replace(file)  # a rank that is killed meanwhile leaves nothing
    return True


def failures_left(folder: Path) -> dict[int, Failure]:
    """What ranks have left, by their numbers."""
    files = sorted(folder.glob(f"*{_FAILURE}"), key=lambda file: int(file.stem))
    return {int(file.stem): Failure(**json.loads(file.read_text(encoding="utf-8"))) for file in files}


def as_error(message: str, hint: str, exit_code: int) -> GptFastError:
    """An error of the kind that an exit code stands for."""
    kinds = (kind for kind in GptFastError.__subclasses__() if kind.exit_code == exit_code != ExitCode.FAILURE)
    return next(kinds, GptFastError)(message, hint)


_PR_SET_PDEATHSIG = 1
_SECONDS_BETWEEN_LOOKS = 1.0


def end_with_parent(environment: MutableMapping[str, str] = os.environ) -> None:
    """Let a rank or a replica end with its parent; the variable is removed, so that no other child inherits it."""
    named = environment.pop(PARENT, None)
    if named is not None:
        _follow(int(named))
    elif TORCHRUN in environment:
        _follow(os.getppid())


def _follow(parent: int) -> None:
    if sys.platform == "linux" and ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) == 0:
        if os.getppid() != parent:  # it ended before that
            os.kill(os.getpid(), signal.SIGKILL)
    else:
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    os.kill(os.getpid(), signal.SIGKILL)
