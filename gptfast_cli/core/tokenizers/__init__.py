"""Tokenizers: text to token ids and back, from any supported tokenizer file of a model's folder."""

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
from gptfast_cli.core.tokenizers.chat.template_files import template_files
from gptfast_cli.core.tokenizers.declarations import (
    ADDED_TOKENS,
    GENERATION_CONFIG,
    SPECIAL_TOKENS_MAP,
    TOKENIZER_CONFIG,
    Declarations,
    read_declarations,
)
from gptfast_cli.core.tokenizers.gguf import tokenizer_folder
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
    "tokenizer_folder",
    "vocabulary_difference",
]

_COMPANIONS = (TOKENIZER_CONFIG, SPECIAL_TOKENS_MAP, ADDED_TOKENS, GENERATION_CONFIG)


def open_tokenizer(
    folder: Path, special: SpecialTokens | None = None, *, n_embeddings: int | None = None
) -> Tokenizer | None:
    """The tokenizer of a model's folder; None if it has no tokenizer file.

    special:      the special tokens of a manifest; None: read from the folder's JSON files
    n_embeddings: rows of the model's embedding, beyond which ids are refused; None if ids are not fed to a model

    Of several files the first readable one is used, by ascending rank of the formats. Raises CorruptError if no
    tokenizer file is readable, or a JSON file beside it is damaged.
    """
    declared = read_declarations(folder)
    found = _read_vocabulary(folder, declared)
    if found is None:
        return None
    path, vocabulary = found
    return Tokenizer(vocabulary, special or resolve(declared, vocabulary), n_embeddings, path)


def special_tokens(folder: Path) -> SpecialTokens:
    """The special tokens of a model's folder; without a tokenizer file those declared by id.

    Raises CorruptError like `open_tokenizer`.
    """
    declared = read_declarations(folder)
    found = _read_vocabulary(folder, declared)
    return resolve(declared, None if found is None else found[1])


def tokenizer_files(folder: Path) -> tuple[Path, ...]:
    """The files of the folder's tokenizer and chat templates, sorted; a copy of them works alike.

    Without config.json, whose end-of-sequence ids are part of SpecialTokens.
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
