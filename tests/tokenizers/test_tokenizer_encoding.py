"""Encoding and decoding equal those of transformers and of the libraries, BOS comes once, bad text is refused."""

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from gptfast_cli.core.errors import UsageError
from gptfast_cli.core.tokenizers import Tokenizer, open_tokenizer
from tokenizer_samples import JSON_SAMPLES, RANKED, REAL_SENTENCEPIECE, SPECIAL_TEXTS, TEXTS, declare, pieces_and_merges
from tokenizer_samples import write as write_sample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TokenizerOf = Callable[[str], Tokenizer]
FolderOf = Callable[[str], Path]

# LlamaTokenizer leaves out SentencePiece's dummy space where a text, or what follows a special token, begins with one
begins_plain = re.compile(r"(?!.*</?s>[ ▁])([^ ▁]|$)", re.DOTALL).match

any_text = st.text(max_size=40) | st.text("ab \n\t▁€é🙂<s>/", max_size=40)


@cache
def llama_tokenizer(version: str) -> "PreTrainedTokenizerBase":
    """What transformers makes of a real SentencePiece model."""
    from transformers import LlamaTokenizer

    vocab, merges = pieces_and_merges(version)
    return LlamaTokenizer(vocab=vocab, merges=merges, add_bos_token=True, legacy=True)


@cache
def auto_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("version", ["v1", "v3"])
@pytest.mark.parametrize("text", [*filter(begins_plain, [*TEXTS, *SPECIAL_TEXTS])])
def test_sentencepiece_equals_transformers(tokenizer_of: TokenizerOf, version: str, text: str) -> None:
    ours, theirs = tokenizer_of(version), llama_tokenizer(version)
    ids = theirs.encode(text)
    assert ours.encode(text, bos=False) == ids[1:]
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


@given(text=any_text.filter(begins_plain))
def test_sentencepiece_equals_transformers_on_any_text(tokenizer_of: TokenizerOf, text: str) -> None:
    assert tokenizer_of("v1").encode(text, bos=False) == llama_tokenizer("v1").encode(text, add_special_tokens=False)


@pytest.mark.parametrize("version", REAL_SENTENCEPIECE)
@pytest.mark.parametrize("text", TEXTS)
def test_sentencepiece_equals_its_library(
    tokenizer_of: TokenizerOf, folder_of: FolderOf, version: str, text: str
) -> None:
    library = sentencepiece.SentencePieceProcessor(model_file=str(folder_of(version) / "tokenizer.model"))
    assert tokenizer_of(version).encode(text) == [library.bos_id(), *library.encode(text)]


@pytest.mark.parametrize("sample", JSON_SAMPLES)
@pytest.mark.parametrize("text", [*TEXTS, "a<s> b", "x<|eot_id|> y", "w1 w2</s>w3"])
def test_tokenizer_json_equals_transformers(
    tokenizer_of: TokenizerOf, folder_of: FolderOf, sample: str, text: str
) -> None:
    ours, theirs = tokenizer_of(sample), auto_tokenizer(folder_of(sample))
    ids = theirs.encode(text)
    assert ours.encode(text) == ids
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("sample", JSON_SAMPLES)
@given(text=any_text.filter(lambda text: not text.startswith("<s>")))
def test_tokenizer_json_equals_transformers_on_any_text(
    tokenizer_of: TokenizerOf, folder_of: FolderOf, sample: str, text: str
) -> None:
    assert tokenizer_of(sample).encode(text) == auto_tokenizer(folder_of(sample)).encode(text)


@pytest.mark.parametrize("text", TEXTS)
def test_both_files_of_one_model_encode_plain_text_alike(tokenizer_of: TokenizerOf, text: str) -> None:
    assert tokenizer_of("v1").encode(text) == tokenizer_of("rewritten").encode(text)


@pytest.mark.parametrize("sample", [*REAL_SENTENCEPIECE, "rewritten", "byte_level", *RANKED])
@pytest.mark.parametrize("text", [text for text in TEXTS if "▁" not in text])
def test_a_text_survives_the_way_there_and_back(tokenizer_of: TokenizerOf, sample: str, text: str) -> None:
    assert tokenizer_of(sample).decode(tokenizer_of(sample).encode(text)) == text


@pytest.mark.parametrize(
    ("sample", "bos"),
    [
        ("v1", "<s>"),
        ("rewritten", "<s>"),
        ("byte_level", "<|begin_of_text|>"),
        ("tiktoken", "<|begin_of_text|>"),
        ("tekken", "<s>"),
        ("tekken_listed", "<s>"),
    ],
)
@pytest.mark.parametrize("text", ["", "Hello", " x"])
def test_bos_comes_exactly_once(tokenizer_of: TokenizerOf, sample: str, bos: str, text: str) -> None:
    tokenizer = tokenizer_of(sample)
    for prompt in (text, bos + text):
        ids = tokenizer.encode(prompt)
        assert ids[0] == tokenizer.bos_id
        assert ids.count(ids[0]) == 1
    assert tokenizer.bos_id not in tokenizer.encode(text, bos=False)


def test_a_template_that_ends_a_text_does_not_end_a_prompt(tmp_path: Path) -> None:
    import tokenizers

    write_sample(tmp_path, "words")
    file = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    template = {"single": "<s> $A </s>", "special_tokens": [("<s>", 1), ("</s>", 2)]}
    file.post_processor = tokenizers.processors.TemplateProcessing(**template)
    file.save(str(tmp_path / "tokenizer.json"))
    tokenizer = open_tokenizer(tmp_path)
    assert tokenizer is not None
    assert tokenizer.encode("w0 w1") == [1, 3, 4]


@pytest.mark.parametrize("sample", ["v1", "rewritten", "byte_level", "tiktoken", "tekken"])
@pytest.mark.parametrize("text", ["\ud83d", "a\udc80b"])
def test_half_a_character_is_a_usage_error(tokenizer_of: TokenizerOf, sample: str, text: str) -> None:
    with pytest.raises(UsageError, match="lone surrogate"):
        tokenizer_of(sample).encode(text)


def test_a_word_that_a_vocabulary_lacks_altogether_is_a_usage_error(tmp_path: Path) -> None:
    from tokenizers import Tokenizer as Library
    from tokenizers import models

    Library(models.WordLevel({"known": 0, "</s>": 1})).save(str(tmp_path / "tokenizer.json"))
    tokenizer = open_tokenizer(tmp_path)
    assert tokenizer is not None
    assert tokenizer.encode("known") == [0]
    with pytest.raises(UsageError, match="cannot encode"):
        tokenizer.encode("unknown")


def test_a_truncation_left_in_the_file_does_not_cut_a_prompt(tmp_path: Path) -> None:
    import tokenizers

    write_sample(tmp_path, "words")
    file = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    file.enable_truncation(2)
    file.enable_padding(length=8, pad_id=2)
    file.save(str(tmp_path / "tokenizer.json"))
    tokenizer = open_tokenizer(tmp_path)
    assert tokenizer is not None
    assert tokenizer.encode("w0 w1 w2") == [3, 4, 5]


def test_tokens_added_to_a_sentencepiece_model_are_read_and_written(tmp_path: Path) -> None:
    write_sample(tmp_path, "v1")
    known = {"1": {"content": "<s>", "special": True}}  # listed too, and no token on top
    added = {"32000": {"content": "<|im_end|>", "special": True}, "32001": {"content": "<think>", "special": False}}
    declare(tmp_path, "tokenizer_config.json", added_tokens_decoder=known | added)
    tokenizer = open_tokenizer(tmp_path)
    assert tokenizer is not None
    ids = tokenizer.encode("Hello<|im_end|><think>so")
    assert ids == [1, *tokenizer.encode("Hello", bos=False), 32000, 32001, *tokenizer.encode("so", bos=False)]
    assert tokenizer.decode(ids) == "Hello<think> so"
    assert tokenizer.decode([32001, ids[-1]]) == "<think> so"
    assert tokenizer.vocab_size == 32002


def test_a_plain_piece_that_is_declared_special_is_left_out_of_the_text(tmp_path: Path) -> None:
    write_sample(tmp_path, "user_defined")
    declare(tmp_path, "tokenizer_config.json", eos_token="<tag>", unk_token="<unk>")
    tokenizer = open_tokenizer(tmp_path)
    assert tokenizer is not None
    ids = tokenizer.encode("fox<tag>", bos=False)
    assert tokenizer.stop_ids == {ids[-1]}
    assert tokenizer.decode(ids) == "fox"
    assert tokenizer.decode([0]) == "?"  # as the library writes it, declared or not


def test_of_two_added_tokens_that_begin_alike_the_longer_is_taken(tmp_path: Path) -> None:
    write_sample(tmp_path, "v1")
    declare(tmp_path, "added_tokens.json", **{"<a>": 32000, "<a><b>": 32001})
    tokenizer = open_tokenizer(tmp_path)
    assert tokenizer is not None
    assert tokenizer.encode("<a><b><a>", bos=False) == [32001, 32000]


def test_an_older_added_tokens_file_counts_too(tmp_path: Path) -> None:
    write_sample(tmp_path, "v1")
    declare(tmp_path, "added_tokens.json", **{"<|im_start|>": 32000})
    tokenizer = open_tokenizer(tmp_path)
    assert tokenizer is not None
    assert tokenizer.encode("<|im_start|>", bos=False) == [32000]


def test_tokens_declared_beside_a_tokenizer_json_equal_transformers(tmp_path: Path) -> None:
    write_sample(tmp_path, "byte_level")
    first_free = open_tokenizer(tmp_path).vocab_size  # type: ignore[union-attr]
    added = {str(first_free): {"content": "<|tool|>", "special": True}, "65": {"content": "b", "special": False}}
    declare(tmp_path, "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast", added_tokens_decoder=added)
    ours, theirs = open_tokenizer(tmp_path), auto_tokenizer(tmp_path)
    assert ours is not None
    ids = theirs.encode("call <|tool|>now")
    assert ours.encode("call <|tool|>now") == ids
    assert first_free in ids
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
