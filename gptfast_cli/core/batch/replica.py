"""A replica: a process that answers some rows of a file for another one, which tells it which and by which seed."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

VARIABLE: Final = "GPTFAST_REPLICA"
"""The variable that names the file with a replica's part; the rest is the same command line."""


@dataclass(frozen=True, slots=True)
class ReplicaPart:
    """The lines of the rows to answer, and the seed of the run."""

    lines: Sequence[int]
    seed: int


def write_part(part: ReplicaPart, file: Path) -> None:
    """Leave a part for a replica."""
    file.write_text(json.dumps(asdict(part)), encoding="utf-8")


def own_part(environment: Mapping[str, str] = os.environ) -> ReplicaPart | None:
    """The part of this process; None where it is no replica."""
    file = environment.get(VARIABLE)
    return None if file is None else ReplicaPart(**json.loads(Path(file).read_text(encoding="utf-8")))
