"""Sources: foreign checkpoint layouts, opened in place or converted. One file each."""

from pathlib import Path
from typing import Protocol

from gptfast_cli.core.checkpoints.foreign import ForeignCheckpoint
from gptfast_cli.core.registry import Plugs


class Source(Protocol):
    """One layout of a model's files."""

    looks_for: str
    """Files that identify the layout, for error messages."""

    rank: int
    """If several layouts match, the lowest rank wins; ranks are unique."""

    def holds(self, path: Path) -> bool:
        """Whether a folder has this layout, or a file belongs to one that has."""
        ...

    def open(self, path: Path, *, allow_pickle: bool) -> ForeignCheckpoint:
        """Open it in place; errors as in `open_checkpoint`."""
        ...


sources: Plugs[Source] = Plugs(__name__)


def sources_by_rank() -> list[Source]:
    """All sources, by ascending rank."""
    return sorted(sources.values(), key=lambda source: source.rank)
