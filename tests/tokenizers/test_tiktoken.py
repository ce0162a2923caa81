"""Llama 3's tokenizer.model encodes as the tiktoken library does, and its special tokens are where Meta has them."""

import random
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import tiktoken
from hypothesis import given
from hypothesis import strategies as st

from gptfast_cli.core.errors import CorruptError
from gptfast_cli.core.tokenizers import SpecialTokens, Tokenizer, open_tokenizer
from gptfast_cli.core.tokenizers.agreement import SAMPLES
from tokenizer_samples import SPECIAL_TEXTS, TEXTS, declare, ranked_tokens, tiktoken_file, write

TokenizerOf = Callable[[str], Tokenizer]

N = len(ranked_tokens())
LLAMA_3 = {
    "<|begin_of_text|>": 0,
    "<|end_of_text|>": 1,
    "<|reserved_special_token_0|>": 2,
    "<|reserved_special_token_1|>": 3,
    "<|finetune_right_pad_id|>": 4,
    "<|reserved_special_token_2|>": 5,
    "<|start_header_id|>": 6,
    "<|end_header_id|>": 7,
    "<|eom_id|>": 8,
    "<|eot_id|>": 9,
    "<|python_tag|>": 10,
    "<|reserved_special_token_3|>": 11,
    "<|reserved_special_token_247|>": 255,
}
STOPS = frozenset({N + 1, N + 8, N + 9})

repeats = st.text("aA \n'0.é🙂", max_size=6).flatmap(lambda text: st.integers(1, 60).map(text.__mul__))
any_text = st.text(max_size=60) | st.lists(repeats | st.sampled_from(TEXTS), max_size=4).map("".join)


@pytest.fixture(scope="module")
def library() -> tiktoken.Encoding:
    """The tiktoken library on the same file, with the pattern that transformers has for it."""
    from transformers.convert_slow_tokenizer import TikTokenConverter

    ranks = {token: rank for rank, token in enumerate(ranked_tokens())}
    special = {text: N + place for text, place in LLAMA_3.items()}
    return tiktoken.Encoding(
        "sample", pat_str=TikTokenConverter().pattern, mergeable_ranks=ranks, special_tokens=special
    )


def opened(folder: Path) -> Tokenizer:
    tokenizer = open_tokenizer(folder)
    assert tokenizer is not None
    return tokenizer


@pytest.mark.parametrize(
    "text", [*TEXTS, *SPECIAL_TEXTS, *SAMPLES, "\u017f'\u017f it'\u017f K'\u212a", "a\x85b\x1cc\u2028 d"]
)
def test_every_text_encodes_as_in_the_tiktoken_library(
    tokenizer_of: TokenizerOf, library: tiktoken.Encoding, text: str
) -> None:
    assert tokenizer_of("tiktoken").encode(text, bos=False) == library.encode(text, allowed_special="all")


@given(text=any_text)
def test_any_text_encodes_as_in_the_tiktoken_library(
    tokenizer_of: TokenizerOf, library: tiktoken.Encoding, text: str
) -> None:
    assert tokenizer_of("tiktoken").encode(text, bos=False) == library.encode(text, allowed_special="all")


@given(text=st.text("ab", max_size=60))
def test_words_of_few_letters_merge_by_rank_from_left_to_right(tokenizer_of: TokenizerOf, text: str) -> None:
    assert tokenizer_of("tiktoken").encode(text, bos=False) == merged_by_rank(text.encode())


def merged_by_rank(word: bytes) -> list[int]:
    """One word's tokens, straight from the definition."""
    ranks = {token: rank for rank, token in enumerate(ranked_tokens())}
    if word in ranks:
        return [ranks[word]]
    parts = [word[i : i + 1] for i in range(len(word))]
    while pairs := [(ranks[a + b], i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in ranks]:
        _, i = min(pairs)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return [ranks[part] for part in parts]


def test_a_token_that_no_merges_lead_to_is_taken_where_it_is_a_word(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(tiktoken_file([*(bytes([i]) for i in range(256)), b"xyz"]))
    assert opened(tmp_path).encode("xyz wxyz", bos=False) == [256, *b" wxyz"]


@pytest.mark.parametrize(("text", "place"), LLAMA_3.items())
def test_special_tokens_follow_the_ranks_in_llama_3s_order(tokenizer_of: TokenizerOf, text: str, place: int) -> None:
    tokenizer = tokenizer_of("tiktoken")
    assert tokenizer.encode(f"a{text}b", bos=False)[1:-1] == [N + place]
    assert tokenizer.vocabulary.id_of(text) == N + place
    assert tokenizer.decode([N + place]) == ""


def test_the_file_alone_begins_a_text_and_ends_a_turn(tmp_path: Path) -> None:
    write(tmp_path, "tiktoken")
    assert opened(tmp_path).special == SpecialTokens(bos_id=N, add_bos=True, stop_ids=STOPS)
    assert opened(tmp_path).vocab_size == N + 256


def test_an_end_of_turn_that_generation_config_alone_declares_ends_an_answer_too(tmp_path: Path) -> None:
    write(tmp_path, "byte_level")
    declare(tmp_path, "generation_config.json", eos_token_id=[2])
    end_of_turn = opened(tmp_path).vocabulary.id_of("<|eot_id|>")
    assert opened(tmp_path).stop_ids == {end_of_turn}


def test_what_json_files_declare_counts_before_the_layout(tmp_path: Path) -> None:
    write(tmp_path, "tiktoken")
    listed = {
        str(N + 8): {"content": "<|reserved_special_token_4|>", "special": True},
        str(N + 11): {"content": "<tool>", "special": False},
    }
    declare(tmp_path, "tokenizer_config.json", added_tokens_decoder=listed, eos_token="<|eot_id|>")
    tokenizer = opened(tmp_path)
    assert tokenizer.stop_ids == {N + 9}
    assert tokenizer.vocabulary.id_of("<|eom_id|>") is None
    assert tokenizer.encode("<|reserved_special_token_4|><tool>", bos=False) == [N + 8, N + 11]
    assert tokenizer.decode([N + 8, N + 11]) == "<tool>"


def test_a_plain_token_with_a_role_is_left_out_of_the_text(tmp_path: Path) -> None:
    write(tmp_path, "tiktoken")
    declare(tmp_path, "tokenizer_config.json", pad_token="!")
    tokenizer = opened(tmp_path)
    assert tokenizer.decode(tokenizer.encode("a! b")) == "a b"


@pytest.mark.parametrize(("sample", "refusing"), [("v1", "tiktoken"), ("tiktoken", "sentencepiece")])
def test_two_formats_share_a_file_name_and_the_right_one_reads_it(
    tmp_path: Path, tokenizer_of: TokenizerOf, sample: str, refusing: str
) -> None:
    from gptfast_cli.core.tokenizers.declarations import read_declarations
    from gptfast_cli.core.tokenizers.formats import formats

    write(tmp_path, sample)
    with pytest.raises(CorruptError, match=r"tokenizer\.model"):
        formats[refusing].read(tmp_path / "tokenizer.model", read_declarations(tmp_path))
    assert opened(tmp_path).encode("Hello") == tokenizer_of(sample).encode("Hello")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda file: file[: len(file) // 2 + 1], "line"),
        (lambda file: file[:-1] + b"9\n", "ranks are not 0 to 2999"),  # 29999 in the place of 2999
        (lambda file: file[:-2] + b"\n", "duplicate rank 299"),
        (lambda file: file + b"IQ== 7\n", "duplicate rank 7"),
        (lambda file: file + b"IQ== 3000\n", "1 duplicate tokens"),
        (lambda file: file + b"\n", "line 3001"),
        (lambda file: file + b"!!!! 3000\n", "line 3001"),
        (lambda file: file + b" 3000\n", "line 3001"),
        (lambda file: file + b"IQ== -1\n", "0 to 3000"),
        (lambda file: file + b"IQ== x\n", "line 3001"),
        (lambda file: file + b"QUFB" * 1000 + b" 3000\n", "line 3001"),
        (lambda file: b"".join(file.splitlines(keepends=True)[:100]), "no token for the byte"),
        (lambda file: bytes(random.Random(1).randbytes(100_000)), "line 1"),
    ],
)
def test_a_damaged_file_says_where(tmp_path: Path, damage: Callable[[bytes], bytes], said: str) -> None:
    (tmp_path / "tokenizer.model").write_bytes(damage(tiktoken_file(ranked_tokens())))
    with pytest.raises(CorruptError) as caught:
        open_tokenizer(tmp_path)
    assert said in caught.value.message
    assert "--tokenizer-from" in caught.value.hint


def test_a_file_cut_between_two_lines_is_reported_by_the_bos_of_the_model(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(tiktoken_file(ranked_tokens()[:2500]))
    declare(tmp_path, "config.json", bos_token_id=N)
    with pytest.raises(CorruptError, match="cut short"):
        open_tokenizer(tmp_path)
