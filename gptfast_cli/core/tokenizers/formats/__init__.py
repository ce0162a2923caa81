"""Tokenizer file formats. One file each; the file name is the format's name."""

from pathlib import Path
from typing import Protocol

from gptfast_cli.core.registry import Plugs
from gptfast_cli.core.tokenizers.declarations import Declarations
from gptfast_cli.core.tokenizers.tokenizer import Vocabulary


class TokenizerFormat(Protocol):
    """One format of tokenizer file. Formats may share file names; each refuses the files of the others."""

    file_names: tuple[str, ...]
    """File names of this format in a model's folder, the usual one first."""

    rank: int
    """If a folder has files of several formats, the lowest rank is used; ranks are unique."""

    def read(self, path: Path, declared: Declarations) -> Vocabulary:
        """Read a file, with the declared tokens. Raises CorruptError if it is damaged or of another format."""
        ...


formats: Plugs[TokenizerFormat] = Plugs(__name__)
