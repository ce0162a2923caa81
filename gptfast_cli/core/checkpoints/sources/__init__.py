"""Sources: other layouts of a model's files that open in place or are converted. One file each."""

from pathlib import Path
from typing import Protocol

from gptfast_cli.core.checkpoints.foreign import ForeignCheckpoint
from gptfast_cli.core.registry import Plugs


class Source(Protocol):
    """One layout of a model's files."""

    looks_for: str
    """What a folder of this layout is known by, for the message that a folder holds no model."""

    rank: int
    """Where a folder is of several layouts, the lowest rank is taken; a rank is used once."""

    def holds(self, path: Path) -> bool:
        """Whether a folder is of this layout, or a file a part of one that is."""
        ...

    def open(self, path: Path, *, allow_pickle: bool) -> ForeignCheckpoint:
        """Open what it holds as it stands; errors as those of `open_checkpoint`.

        A pickle is opened only where that is allowed, else it is a CorruptError with the command that allows it.
        """
        ...


sources: Plugs[Source] = Plugs(__name__)


def sources_by_rank() -> list[Source]:
    """All sources, the one to take first."""
    return sorted(sources.values(), key=lambda source: source.rank)
