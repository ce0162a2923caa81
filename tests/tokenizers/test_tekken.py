"""A tekken.json encodes as Mistral's own library does, and a malformed one is refused in a moment."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from mistral_common.tokens.tokenizers.tekken import Tekkenizer

from gptfast_cli.core.errors import CorruptError
from gptfast_cli.core.tokenizers import SpecialTokens, Tokenizer, open_tokenizer
from gptfast_cli.core.tokenizers.agreement import SAMPLES
from tokenizer_samples import REAL_TEKKEN, SPECIAL_TEXTS, TEXTS, declare, real_tekken, tekken_content, write

TokenizerOf = Callable[[str], Tokenizer]

repeats = st.text("aA \n'0./é🙂", max_size=6).flatmap(lambda text: st.integers(1, 60).map(text.__mul__))
any_text = st.text(max_size=60) | st.lists(repeats | st.sampled_from(TEXTS), max_size=4).map("".join)


def opened(folder: Path) -> Tokenizer:
    tokenizer = open_tokenizer(folder)
    assert tokenizer is not None
    return tokenizer


@pytest.fixture(scope="module", params=[REAL_TEKKEN[0], pytest.param(REAL_TEKKEN[1], marks=pytest.mark.slow)])
def real(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A real file as gptfast reads it, and as its makers do."""
    folder = tmp_path_factory.mktemp("tekken")
    (folder / "tekken.json").symlink_to(real_tekken(request.param))
    return opened(folder), Tekkenizer.from_file(real_tekken(request.param))


@pytest.fixture(scope="module", params=["tekken", "tekken_listed"])
def small(request: pytest.FixtureRequest, folder_of: Callable[[str], Path], tokenizer_of: TokenizerOf) -> Any:
    return tokenizer_of(request.param), Tekkenizer.from_file(folder_of(request.param) / "tekken.json")


def test_a_real_file_encodes_every_text_as_in_mistrals_library(real: tuple[Tokenizer, Tekkenizer]) -> None:
    ours, theirs = real
    for text in (*TEXTS, *SAMPLES, "\u017f'\u017f it'\u017f K'\u212a", "a\x85b\x1cc\u2028 d", " " * 3000 + "x" * 3000):
        written_out = any(special in text for special in ("<s>", "[INST]"))
        if not written_out:  # the library takes those for plain text
            ids = theirs.encode(text, bos=True, eos=False)
            assert ours.encode(text) == ids
            assert ours.decode(ids) == theirs.decode(ids) == text


@given(text=any_text)
def test_any_text_encodes_as_in_mistrals_library(small: tuple[Tokenizer, Tekkenizer], text: str) -> None:
    ours, theirs = small
    assume(not any(theirs.id_to_piece(token_id) in text for token_id in theirs.special_ids))
    assert ours.encode(text) == theirs.encode(text, bos=True, eos=False)


def test_all_special_tokens_are_where_mistrals_library_has_them(small: tuple[Tokenizer, Tekkenizer]) -> None:
    ours, theirs = small
    special = sorted(theirs.special_ids)
    assert len(special) == theirs.num_special_tokens == 100
    assert ours.vocab_size == theirs.n_words
    for token_id in special:
        text = theirs.id_to_piece(token_id)
        assert ours.vocabulary.id_of(text) == token_id
        assert ours.encode(f"a{text}", bos=False)[1:] == [token_id]
    assert ours.decode(special) == ""


@pytest.mark.parametrize("text", SPECIAL_TEXTS)
def test_special_tokens_written_out_are_those_tokens(small: tuple[Tokenizer, Tekkenizer], text: str) -> None:
    ours, theirs = small
    plain = text.replace("</s>", "|").replace("<s>", "|").split("|")
    ids = ours.encode(text, bos=False)
    assert [i for i in ids if i >= 100] == [i for part in plain for i in theirs.encode(part, bos=False, eos=False)]
    assert (ids.count(theirs.bos_id), ids.count(theirs.eos_id)) == (text.count("<s>"), text.count("</s>"))


def test_the_file_alone_has_bos_and_eos(tokenizer_of: TokenizerOf) -> None:
    assert tokenizer_of("tekken").special == SpecialTokens(bos_id=1, add_bos=True, stop_ids=frozenset({2}))


def test_tokenizer_json_is_taken_before_tekken_json(tmp_path: Path) -> None:
    write(tmp_path, "tekken")
    write(tmp_path, "words")
    assert opened(tmp_path).encode("w0 w1") == [3, 4]


def test_declared_stop_ids_are_united_with_the_files_own(tmp_path: Path) -> None:
    write(tmp_path, "tekken")
    declare(tmp_path, "generation_config.json", eos_token_id=4)
    assert opened(tmp_path).stop_ids == {2, 4}


def set_config(**fields: object) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["config"].update(fields)


def set_entry(place: int, /, **fields: object) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["vocab"][place].update(fields)


def set_special(*entries: object) -> Callable[[dict[str, Any]], None]:
    return lambda content: content.update(special_tokens=[*entries])


@pytest.mark.parametrize(
    "damage",
    [
        dict.clear,
        lambda content: content.pop("config"),
        lambda content: content.pop("vocab"),
        lambda content: content.update(vocab={}),
        lambda content: content.update(vocab=content["vocab"][:100]),
        lambda content: content.update(vocab=[None] * 3000),
        lambda content: content["vocab"].reverse(),
        lambda content: content.update(special_tokens="<s>"),
        set_config(default_vocab_size=10**12),
        set_config(default_vocab_size=-1),
        set_config(default_vocab_size="1600"),
        set_config(default_num_special_tokens=0),
        set_config(default_num_special_tokens=10**9, default_vocab_size=10**9 + 5),
        set_config(default_num_special_tokens=1599),
        set_config(version=3),
        set_config(version="v13"),  # which would list its special tokens
        set_config(pattern=None),
        set_config(pattern="[a"),
        set_config(pattern=r"\p{NoSuchProperty}"),
        set_config(pattern="(a+)+$|."),
        set_config(pattern=".*.*x|."),
        set_entry(7, rank=8),
        set_entry(7, token_bytes="!"),
        set_entry(7, token_bytes="Ä"),
        set_entry(7, token_bytes=""),
        set_entry(7, token_bytes=None),
        set_entry(300, token_bytes="QQ=="),  # as rank 65
        set_entry(65, token_bytes="QUFBQUFB"),  # then no token is the byte A
        set_entry(300, token_bytes="QUFB" * 1000),
        set_special({"rank": 0}),
        set_special({"rank": "0", "token_str": "<s>"}),
        set_special({"rank": -1, "token_str": "<s>"}),
        set_special({"rank": 100, "token_str": "<s>"}),
        set_special({"rank": 0, "token_str": "<s>"}, {"rank": 0, "token_str": "</s>"}),
        set_special({"rank": 0, "token_str": "<s>"}, {"rank": 1, "token_str": "<s>"}),
        set_special({"rank": 0, "token_str": ""}),
    ],
)
def test_a_malformed_file_is_refused(tmp_path: Path, damage: Callable[[dict[str, Any]], object]) -> None:
    content: dict[str, Any] = tekken_content()
    damage(content)
    (tmp_path / "tekken.json").write_text(json.dumps(content))
    with pytest.raises(CorruptError, match=r"tekken\.json: not a Tekken file") as caught:
        open_tokenizer(tmp_path)
    assert "--tokenizer-from" in caught.value.hint


@pytest.mark.parametrize("content", [b"", b"[]", b"[" * 100_000, b'{"config": NaN}', b"\xff\xfe", b'{"config'])
def test_what_is_no_json_object_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tekken.json").write_bytes(content)
    with pytest.raises(CorruptError, match=r"tekken\.json"):
        open_tokenizer(tmp_path)
