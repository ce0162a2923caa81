"""The part of a file of prompts that a replica process answers: its rows, and the seed of the run."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

VARIABLE: Final = "GPTFAST_REPLICA"
"""Environment variable: the JSON file with this replica's part. The command line is that of the parent."""


@dataclass(frozen=True, slots=True)
class ReplicaPart:
    """The lines of the rows to answer, and the seed of the run."""

    lines: Sequence[int]
    seed: int


def write_part(part: ReplicaPart, file: Path) -> None:
    """Write the part of a replica."""
    file.write_text(json.dumps(asdict(part)), encoding="utf-8")


def own_part(environment: Mapping[str, str] = os.environ) -> ReplicaPart | None:
    """The part of this process; None if it is not a replica."""
    file = environment.get(VARIABLE)
    return None if file is None else ReplicaPart(**json.loads(Path(file).read_text(encoding="utf-8")))
