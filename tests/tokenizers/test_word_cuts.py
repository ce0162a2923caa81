"""A long text that is cut between words has the ids of the whole text."""

from collections.abc import Callable

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models, normalizers, pre_tokenizers, trainers

from gptfast_cli.core.tokenizers import library
from tokenizer_samples import TEXTS, byte_level, metaspaced, rewritten

LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
GPT_2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def trained(pattern: str) -> tokenizers.Tokenizer:
    """A byte-level BPE that has merged whatever the words of this expression let it."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=["<|eot|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator([*TEXTS, "a.\n\n b \n \n  c\t\r\n" * 5, "   \n\n\n" * 5], trainer)
    return tokenizer


TOKENIZERS = {"llama 3": trained(LLAMA_3), "gpt 2": trained(GPT_2)}


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=400)
@given(text=st.text("aé.'s1 \n\r\t<", min_size=26, max_size=120))
def test_any_text_has_the_ids_of_the_whole(name: str, text: str) -> None:
    tokenizer = TOKENIZERS[name]
    cut = list(library.pieces(tokenizer, text, 25))
    assert "".join(cut) == text
    ids = [token for piece in cut for token in tokenizer.encode(piece, add_special_tokens=False).ids]
    assert ids == tokenizer.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("name", TOKENIZERS)
def test_usual_texts_are_cut_and_special_tokens_are_not(name: str) -> None:
    text = 'One day, a fox said:<|eot|> "Où vas-tu?"\n\n  It rained; 12345 drops. 日本語 テキスト ' * 9
    assert max(map(len, library.pieces(TOKENIZERS[name], text, 60))) <= 60
    ids = library.encode(TOKENIZERS[name], text, max_characters=100, piece_characters=60)
    assert ids == TOKENIZERS[name].encode(text, add_special_tokens=False).ids


def with_normalizer() -> tokenizers.Tokenizer:
    tokenizer = trained(GPT_2)
    tokenizer.normalizer = normalizers.Prepend("x")
    return tokenizer


def with_prefix_space() -> tokenizers.Tokenizer:
    tokenizer = trained(GPT_2)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return tokenizer


@pytest.mark.parametrize(
    "made",
    [lambda: rewritten("v1"), lambda: metaspaced("first"), byte_level, with_normalizer, with_prefix_space],
    ids=["no words", "Metaspace", "a token with a space", "a normalizer", "a prefix space"],
)
def test_what_more_than_words_decides_about_is_not_cut(made: Callable[[], tokenizers.Tokenizer]) -> None:
    assert len(list(library.pieces(made(), "a fox and a badger met " * 4, 25))) == 1


def test_one_word_is_not_cut() -> None:
    assert list(library.pieces(TOKENIZERS["gpt 2"], "a" * 100, 25)) == ["a" * 100]
