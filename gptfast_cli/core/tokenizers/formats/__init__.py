"""Tokenizer file formats: how a file becomes a vocabulary. One file each; the file name is the format's name."""

from pathlib import Path
from typing import Protocol

from gptfast_cli.core.registry import Plugs
from gptfast_cli.core.tokenizers.declarations import Declarations
from gptfast_cli.core.tokenizers.tokenizer import Vocabulary


class TokenizerFormat(Protocol):
    """One format of tokenizer file. Two formats may share a name; the reader of one refuses the other's."""

    file_names: tuple[str, ...]
    """The names that files of this format have in a model's folder, the usual one first."""

    rank: int
    """Where a folder holds files of several formats, the lowest rank is taken; a rank is used once."""

    def read(self, path: Path, declared: Declarations) -> Vocabulary:
        """Read a file, with the tokens that the JSON files beside it add.

        Raises CorruptError if the file is damaged or of another format.
        """
        ...


formats: Plugs[TokenizerFormat] = Plugs(__name__)
