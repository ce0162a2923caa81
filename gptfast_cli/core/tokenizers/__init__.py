"""Tokenizers: text to token ids and back, from whatever tokenizer file a model's folder holds."""

from pathlib import Path

from gptfast_cli.core.errors import CorruptError
from gptfast_cli.core.tokenizers.agreement import (
    Difference,
    Disagreement,
    disagreements,
    read_vocabulary,
    vocabulary_difference,
    vocabulary_files,
)
from gptfast_cli.core.tokenizers.chat.styles import template_files
from gptfast_cli.core.tokenizers.declarations import (
    ADDED_TOKENS,
    GENERATION_CONFIG,
    SPECIAL_TOKENS_MAP,
    TOKENIZER_CONFIG,
    Declarations,
    read_declarations,
)
from gptfast_cli.core.tokenizers.tokenizer import SpecialTokens, StreamDecoder, Tokenizer, Vocabulary, resolve

__all__ = [
    "Difference",
    "Disagreement",
    "SpecialTokens",
    "StreamDecoder",
    "Tokenizer",
    "disagreements",
    "open_tokenizer",
    "special_tokens",
    "tokenizer_files",
    "vocabulary_difference",
]

_COMPANIONS = (TOKENIZER_CONFIG, SPECIAL_TOKENS_MAP, ADDED_TOKENS, GENERATION_CONFIG)


def open_tokenizer(
    folder: Path, special: SpecialTokens | None = None, *, n_embeddings: int | None = None
) -> Tokenizer | None:
    """The tokenizer of a model's folder, or None if it holds no tokenizer file.

    `special` is what a checkpoint's manifest keeps; without it the special tokens are read from the folder's JSON
    files, config.json among them. Where files of several formats are there, the first readable one of the lowest
    rank is taken. `n_embeddings` is the number of rows of the model's embedding, which may be smaller than the
    vocabulary: the tokens beyond them cannot be encoded. None if ids are not fed to a model.

    Raises CorruptError if no tokenizer file of the folder can be read, or a JSON file beside it is damaged.
    """
    declared = read_declarations(folder)
    found = _read_vocabulary(folder, declared)
    if found is None:
        return None
    path, vocabulary = found
    return Tokenizer(vocabulary, special or resolve(declared, vocabulary), n_embeddings, path)


def special_tokens(folder: Path) -> SpecialTokens:
    """The special tokens of a model's folder, which may lack a tokenizer file: then those declared by id.

    Raises CorruptError like `open_tokenizer`.
    """
    declared = read_declarations(folder)
    found = _read_vocabulary(folder, declared)
    return resolve(declared, None if found is None else found[1])


def tokenizer_files(folder: Path) -> tuple[Path, ...]:
    """The files that a copy of the folder's tokenizer and chat templates needs, under the same names, by name.

    Named chat templates are in a folder inside of it. config.json is not among the files, as its end-of-sequence ids
    are in SpecialTokens.
    """
    companions = (path for name in _COMPANIONS if (path := folder / name).is_file())
    return tuple(sorted([*companions, *vocabulary_files(folder), *template_files(folder)]))


def _read_vocabulary(folder: Path, declared: Declarations) -> tuple[Path, Vocabulary] | None:
    failure: CorruptError | None = None
    for path in vocabulary_files(folder):
        try:
            return path, read_vocabulary(path, declared)
        except CorruptError as error:
            failure = failure or error
    if failure is not None:
        raise failure
    return None
