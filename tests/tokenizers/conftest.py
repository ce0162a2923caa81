"""Tokenizers that take a moment to make, made once for all tests, each beside the library that is its oracle."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import sentencepiece
import tiktoken
import tokenizers

import tokenizer_samples as samples
from gptfast_cli.core.tokenizers import Tokenizer, open_tokenizer

FolderOf = Callable[[str], Path]


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> FolderOf:
    """The folder of a sample by name; nothing may be written into it."""

    @cache
    def make(sample: str) -> Path:
        folder = tmp_path_factory.mktemp(sample)
        samples.write(folder, sample)
        return folder

    return make


@pytest.fixture(scope="session")
def tokenizer_of(folder_of: FolderOf) -> Callable[[str], Tokenizer]:
    """The opened tokenizer of a sample by name."""

    @cache
    def opened(sample: str) -> Tokenizer:
        tokenizer = open_tokenizer(folder_of(sample))
        assert tokenizer is not None
        return tokenizer

    return opened


@pytest.fixture(scope="session")
def library_decode_of(folder_of: FolderOf) -> Callable[[str], Callable[[list[int]], str]]:
    """The decoding of a whole sequence by the library that owns the format, by the sample's name."""

    @cache
    def decode(sample: str) -> Callable[[list[int]], str]:
        if sample in samples.MODELS:
            return sentencepiece.SentencePieceProcessor(model_file=str(folder_of(sample) / "tokenizer.model")).decode
        if sample in samples.RANKED:
            return _ranked_decode(*((0, 3000) if sample == "tiktoken" else (100, 1500)))
        return tokenizers.Tokenizer.from_file(str(folder_of(sample) / "tokenizer.json")).decode

    return decode


def _ranked_decode(first_id: int, n_tokens: int) -> Callable[[list[int]], str]:
    """The `tiktoken` library's decoding; what it does not know, special tokens and others, has no text."""
    ranks = {token: rank for rank, token in enumerate(samples.ranked_tokens()[:n_tokens])}
    library = tiktoken.Encoding("ranked", pat_str="(?s:.)", mergeable_ranks=ranks, special_tokens={})
    return lambda ids: library.decode([i - first_id for i in ids if 0 <= i - first_id < n_tokens])
