"""Which rank of a job this process is, as `torchrun` and our own launcher tell it, and what it leaves when it fails."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from gptfast_cli.core.errors import ExitCode, GptFastError, UsageError

FOLDER: Final = "GPTFAST_RANKS"
"""The variable that names the folder in which ranks leave what they fail with, where our own launcher is there."""

_STARTED_BY_LAUNCHER: Final = "TORCHELASTIC_RUN_ID"  # RANK alone may be set for other reasons


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
    """The rank of this process; None where no launcher has started it. Raises UsageError."""
    if _STARTED_BY_LAUNCHER not in environment:
        return None
    return Rank(*(_number(environment, name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")))


def _number(environment: Mapping[str, str], name: str) -> int:
    value = environment.get(name, "")
    if not (value.isascii() and value.isdecimal() and len(value) < 10):
        raise UsageError(
            f"The environment variable {name} must be a whole number, not {value!r}.",
            f"Start it with torchrun, or outside of it: unset {_STARTED_BY_LAUNCHER}",
        )
    return int(value)


def leave_failure(error: GptFastError) -> bool:
    """Leave an error for the launcher to tell; False where there is none that would, and this process speaks."""
    rank, folder = this_rank(), os.environ.get(FOLDER)
    if rank is None:
        return False
    is_lost = isinstance(error, LostRankError)
    if folder is None:  # under torchrun
        return rank.number != 0 and is_lost
    failure = Failure(error.message, error.hint, int(error.exit_code), is_lost)
    (Path(folder) / str(rank.number)).write_text(json.dumps(asdict(failure)), encoding="utf-8")
    return True


def failures_left(folder: Path) -> dict[int, Failure]:
    """What ranks have left, by their numbers."""
    files = sorted(folder.iterdir(), key=lambda file: int(file.name))
    return {int(file.name): Failure(**json.loads(file.read_text(encoding="utf-8"))) for file in files}


def as_error(message: str, hint: str, exit_code: int) -> GptFastError:
    """An error of the kind that an exit code stands for."""
    kinds = (kind for kind in GptFastError.__subclasses__() if kind.exit_code == exit_code != ExitCode.FAILURE)
    return next(kinds, GptFastError)(message, hint)
