"""The tokenizer files of a model's folder: which there are, in the order in which they are taken, and reading one."""

from pathlib import Path

from gptfast_cli.core.errors import CorruptError
from gptfast_cli.core.quantities import size
from gptfast_cli.core.tokenizers.declarations import Declarations, damaged
from gptfast_cli.core.tokenizers.formats import TokenizerFormat, formats
from gptfast_cli.core.tokenizers.vocabulary import Vocabulary

_MAX_FILE_BYTES = 100_000_000  # the largest in use have 35 million


def vocabulary_files(folder: Path) -> tuple[Path, ...]:
    """The files that hold a vocabulary, the one to take first."""
    names = dict.fromkeys(name for plug in _by_rank() for name in plug.file_names)
    return tuple(path for name in names if (path := folder / name).is_file())


def read_vocabulary(path: Path, declared: Declarations) -> Vocabulary:
    """The vocabulary that a file holds, in whichever format it is.

    Raises CorruptError, with what each format of that name has against it, where none can read it.
    """
    if path.stat().st_size > _MAX_FILE_BYTES:
        raise damaged(path, f"larger than any tokenizer ({size(path.stat().st_size)})")
    reasons = []
    for plug in _by_rank():
        if path.name in plug.file_names:
            try:
                return plug.read(path, declared)
            except CorruptError as error:
                reasons.append(error.message.removeprefix(f"{path}: "))
    raise damaged(path, "; ".join(reasons))


def _by_rank() -> list[TokenizerFormat]:
    return sorted(formats.values(), key=lambda plug: plug.rank)
