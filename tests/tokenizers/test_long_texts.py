"""A text of any length is encoded in bounded time, or refused in words: no hang, no panic, no endless memory."""

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from gptfast_cli.core.errors import CorruptError, UsageError
from gptfast_cli.core.tokenizers import Tokenizer, library, open_tokenizer
from gptfast_cli.core.tokenizers import agreement as files
from gptfast_cli.core.tokenizers.formats import tiktoken as long_runs
from tokenizer_samples import byte_level

TokenizerOf = Callable[[str], Tokenizer]

HOSTILE = {
    "a million spaces": " " * 1_000_000,
    "one letter": "a" * 10_000_000,
    "one emoji": "🙂" * 2_500_000,
    "no whitespace": "".join(map(chr, range(0x4E00, 0x9E00))) * 160,
}


def cut_as_meta_does(text: str, max_run: int) -> Iterator[str]:
    """Llama 3's rule, character by character: a run of more than `max_run` of a kind begins a new piece."""
    begin = run = 0
    for i, character in enumerate(text):
        same = i > 0 and character.isspace() == text[i - 1].isspace()
        run = run + 1 if same else 1
        if run > max_run:
            yield text[begin:i]
            begin, run = i, 1
    yield text[begin:]


@pytest.mark.parametrize("text", ["", "a", " a" * 10, "a" * 25_000, "a" * 25_001, " " * 50_000 + "a", "a" * 90_000])
def test_runs_are_cut_where_llama_3s_own_code_cuts_them(text: str) -> None:
    assert "".join(long_runs.pieces(text)) == text
    assert list(long_runs.pieces(text)) == list(filter(None, cut_as_meta_does(text, 25_000)))


@given(text=st.text(" a\n", max_size=40))
def test_any_runs_are_cut_by_the_same_rule(text: str) -> None:
    short = re.compile(long_runs._PIECE.pattern.replace("25000", "3"))
    assert list(filter(None, short.findall(text))) == list(filter(None, cut_as_meta_does(text, 3)))


def test_no_piece_is_longer_than_llama_3s_own_code_takes() -> None:
    text = "ab " * 300_000
    assert [len(piece) for piece in long_runs.pieces(text)] == [400_000, 400_000, 100_000]


def test_whitespace_means_the_same_to_the_cut_and_to_llama_3s_own_code() -> None:
    assert all(chr(i).isspace() == bool(re.match(r"\s", chr(i))) for i in range(sys.maxunicode + 1))


@pytest.mark.parametrize("text", ["a" * 60_000, " " * 60_000 + "x", "ab" * 30_000 + "<|eot_id|>" + "c" * 30_000])
def test_tiktoken_encodes_each_piece_for_itself(tokenizer_of: TokenizerOf, text: str) -> None:
    tokenizer = tokenizer_of("tiktoken")
    expected: list[int] = []
    for part in re.split(r"(<\|eot_id\|>)", text):
        for piece in filter(None, cut_as_meta_does(part, 25_000)):
            expected += tokenizer.encode(piece, bos=False)
    assert tokenizer.encode(text, bos=False) == expected
    assert tokenizer.decode(expected) == text.replace("<|eot_id|>", "")


def test_a_special_token_is_never_cut(tokenizer_of: TokenizerOf) -> None:
    text = "ab " * 133_333 + "<|eot_id|>"  # its first character is the last of 400,000
    assert tokenizer_of("tiktoken").encode(text)[-1] == tokenizer_of("tiktoken").vocabulary.id_of("<|eot_id|>")


@pytest.mark.slow
@pytest.mark.parametrize("sample", ["v1", "rewritten", "byte_level", "tiktoken", "tekken"])
@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_hostile_text_is_encoded_or_refused(tokenizer_of: TokenizerOf, sample: str, text: str) -> None:
    tokenizer = tokenizer_of(sample)
    if len(text) > library.MAX_CHARACTERS and sample not in ("v1", "tiktoken"):
        with pytest.raises(UsageError, match=str(len(text))):
            tokenizer.encode(text)
    else:
        assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("sample", ["rewritten", "byte_level", "tekken"])
def test_a_text_beyond_the_bound_of_the_library_is_refused_in_words(tokenizer_of: TokenizerOf, sample: str) -> None:
    with pytest.raises(UsageError, match="2000001 characters") as caught:
        tokenizer_of(sample).encode("a" * 2_000_001)
    assert caught.value.hint


def test_a_panic_of_the_library_is_an_error_of_ours(tokenizer_of: TokenizerOf) -> None:
    panicking = tokenizers.Tokenizer(tokenizers.models.BPE())
    panicking.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex("(a+)+$|."), "isolated")
    with pytest.raises(UsageError, match="retry-limit"):
        library.encode(panicking, "a" * 100 + "b")


@pytest.mark.parametrize("pattern", ["(a+)+$|.", ".*.*x|."])
def test_an_expression_that_explodes_is_refused_with_its_file(tmp_path: Path, pattern: str) -> None:
    tokenizer = byte_level()
    tokenizer.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(CorruptError, match=r"tokenizer\.json: not a tokenizer"):
        open_tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.model", "tekken.json"])
def test_a_file_larger_than_any_tokenizer_is_not_even_read(tmp_path: Path, name: str) -> None:
    with (tmp_path / name).open("wb") as file:
        file.truncate(files._MAX_FILE_BYTES + 1)
    with pytest.raises(CorruptError, match=f"{name}: larger than any tokenizer"):
        open_tokenizer(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("content", [b"\0", b"a", b"IQ== 0\n", b"[", b'{"vocab":'], ids=repr)
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.model", "tekken.json"])
def test_a_hundred_megabytes_of_nonsense_end_in_a_corrupt_error(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content * (files._MAX_FILE_BYTES // len(content)))
    with pytest.raises(CorruptError, match=name):
        open_tokenizer(tmp_path)
