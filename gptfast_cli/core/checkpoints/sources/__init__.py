"""Sources: other layouts of a model's files that open in place or are converted. One file each."""

from pathlib import Path
from typing import Protocol

from gptfast_cli.core.checkpoints.checkpoint import Checkpoint
from gptfast_cli.core.registry import Plugs


class Source(Protocol):
    """One layout of a model's files."""

    looks_for: str
    """What a folder of this layout is known by, for the message that a folder holds no model."""

    def holds(self, folder: Path) -> bool:
        """Whether the folder is of this layout."""
        ...

    def open(self, folder: Path) -> Checkpoint:
        """Open such a folder as it stands; errors as those of `open_checkpoint`."""
        ...


sources: Plugs[Source] = Plugs(__name__)
