"""A stream gives, piece by piece, exactly the text that the format's own library gives for the whole sequence."""

from collections.abc import Callable, Sequence

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from gptfast_cli.core.tokenizers import Tokenizer
from gptfast_cli.core.tokenizers.byte_ranks import ByteRankVocabulary
from gptfast_cli.core.tokenizers.formats.sentencepiece import SentencePieceStream
from gptfast_cli.core.tokenizers.tokenizer import spelled
from tokenizer_samples import JSON_SAMPLES, MODELS, RANKED, TEXTS, real_model

TokenizerOf = Callable[[str], Tokenizer]
LibraryDecodeOf = Callable[[str], Callable[[list[int]], str]]

# bytes at the edges of UTF-8's rules: trails, overlong and surrogate leads, leads of two, three and four bytes
EDGES = bytes.fromhex("41 80 82 8F 90 9F A0 AC BD BF C0 C3 E0 E2 ED EF F0 F4 F5 FF")
BYTE_SAMPLES = ("v1", "v7", "whitespace_kept", "rewritten", "byte_level", "tiktoken", "tekken")


def random_ids(tokenizer: Tokenizer) -> st.SearchStrategy[list[int]]:
    """Sequences in which special, byte and very short tokens are as frequent as all others together."""
    few, all_ids = (st.integers(0, min(n, tokenizer.vocab_size - 1)) for n in (270, tokenizer.vocab_size))
    return st.lists(few | all_ids, max_size=30)


def byte_id(tokenizer: Tokenizer, byte: int) -> int:
    if isinstance(tokenizer.vocabulary, ByteRankVocabulary):
        return tokenizer.vocabulary._first_id + byte  # the first 256 ranks of the samples are the bytes in order
    spellings = (f"<0x{byte:02X}>", spelled(bytes([byte])))
    return next(i for spelling in spellings if (i := tokenizer.vocabulary.id_of(spelling)) is not None)


def streamed(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    stream = tokenizer.stream()
    return [*map(stream.push, ids), stream.finish()]


@pytest.mark.parametrize("sample", [*MODELS, *JSON_SAMPLES, *RANKED])
@given(data=st.data())
def test_the_stream_of_any_ids_equals_the_library(
    tokenizer_of: TokenizerOf, library_decode_of: LibraryDecodeOf, sample: str, data: st.DataObject
) -> None:
    tokenizer = tokenizer_of(sample)
    ids = data.draw(random_ids(tokenizer))
    assert "".join(streamed(tokenizer, ids)) == tokenizer.decode(ids) == library_decode_of(sample)(ids)


@pytest.mark.parametrize("sample", BYTE_SAMPLES)
@given(data=st.lists(st.sampled_from(EDGES), max_size=12))
def test_the_stream_of_any_bytes_equals_the_library(
    tokenizer_of: TokenizerOf, library_decode_of: LibraryDecodeOf, sample: str, data: list[int]
) -> None:
    tokenizer = tokenizer_of(sample)
    ids = [byte_id(tokenizer, byte) for byte in data]
    assert "".join(streamed(tokenizer, ids)) == library_decode_of(sample)(ids)


@pytest.mark.parametrize("sample", BYTE_SAMPLES)
@given(text=st.text(max_size=8).map("a{}".format))
def test_a_character_under_way_is_never_shown(tokenizer_of: TokenizerOf, sample: str, text: str) -> None:
    tokenizer = tokenizer_of(sample)
    shown = streamed(tokenizer, [byte_id(tokenizer, byte) for byte in text.encode()])
    assert "".join(shown) == text
    assert sum(piece.count("\ufffd") for piece in shown) == text.count("\ufffd")


@pytest.mark.parametrize("sample", ["v1", "byte_level", "tiktoken", "tekken"])
def test_a_character_comes_with_its_last_byte(tokenizer_of: TokenizerOf, sample: str) -> None:
    tokenizer = tokenizer_of(sample)
    ids = [byte_id(tokenizer, byte) for byte in "€🙂".encode()]
    assert streamed(tokenizer, ids) == ["", "", "€", "", "", "", "🙂", ""]


def test_a_run_of_bytes_in_tokenizer_json_comes_with_the_token_after_it(tokenizer_of: TokenizerOf) -> None:
    tokenizer = tokenizer_of("rewritten")
    euro = [byte_id(tokenizer, byte) for byte in "€".encode()]
    word = tokenizer.vocabulary.id_of("▁word")
    assert word is not None
    assert streamed(tokenizer, [*euro, word]) == ["", "", "", "€ word", ""]


@pytest.mark.parametrize("sample", BYTE_SAMPLES)
def test_bytes_that_no_other_can_complete_become_replacement_characters(
    tokenizer_of: TokenizerOf, library_decode_of: LibraryDecodeOf, sample: str
) -> None:
    tokenizer = tokenizer_of(sample)
    ids = [byte_id(tokenizer, byte) for byte in b"\xe2\x82"]
    shown = streamed(tokenizer, ids)
    assert shown[:-1] == ["", ""]
    assert shown[-1] == library_decode_of(sample)(ids) != ""


@pytest.mark.parametrize("sample", ["v1", "user_defined", "rewritten", "byte_level", "words", "tiktoken", "tekken"])
@given(data=st.data())
def test_ids_beyond_the_vocabulary_have_no_text(tokenizer_of: TokenizerOf, sample: str, data: st.DataObject) -> None:
    tokenizer = tokenizer_of(sample)
    ids = data.draw(random_ids(tokenizer))
    padded = list(ids)
    for place in data.draw(st.lists(st.integers(0, len(ids)), max_size=3)):
        padded.insert(place, tokenizer.vocab_size + place)
    assert tokenizer.decode(padded) == tokenizer.decode(ids)


def test_an_added_token_among_bytes_equals_the_library(
    tokenizer_of: TokenizerOf, library_decode_of: LibraryDecodeOf
) -> None:
    tokenizer = tokenizer_of("byte_level")
    ids = tokenizer.encode("a<日 本>€<café>")
    assert "".join(streamed(tokenizer, ids)) == library_decode_of("byte_level")(ids)
    assert "a<日 本>€" in tokenizer.decode(ids)


@pytest.mark.parametrize("sample", ["v1", "v7", "rewritten"])
def test_a_stream_after_a_prompt_keeps_the_space_of_its_first_word(tokenizer_of: TokenizerOf, sample: str) -> None:
    tokenizer = tokenizer_of(sample)
    word = tokenizer.vocabulary.id_of("▁world")
    assert word is not None
    stream = tokenizer.stream(after=tokenizer.encode("Hello"))
    assert stream.push(word) == " world"
    assert tokenizer.stream().push(word) == "world"


@pytest.mark.parametrize("sample", [*MODELS, *JSON_SAMPLES, *RANKED])
@given(data=st.data())
def test_tokens_after_a_prompt_give_their_own_text_wherever_the_prompt_ends(
    tokenizer_of: TokenizerOf, library_decode_of: LibraryDecodeOf, sample: str, data: st.DataObject
) -> None:
    tokenizer, decode = tokenizer_of(sample), library_decode_of(sample)
    prompt, own = data.draw(random_ids(tokenizer)), data.draw(random_ids(tokenizer))
    if sample in BYTE_SAMPLES:
        prompt += [byte_id(tokenizer, byte) for byte in data.draw(st.lists(st.sampled_from(EDGES), max_size=3))]
        own = [byte_id(tokenizer, byte) for byte in data.draw(st.lists(st.sampled_from(EDGES), max_size=3))] + own
    whole = tokenizer.encode("w1", bos=False)
    stream = tokenizer.stream(after=[*whole, *prompt])
    text = "".join([*map(stream.push, own), stream.finish()])
    assert text == decode([*whole, *own]).removeprefix(decode(whole))


class Counted:
    """A SentencePiece model that counts the ids it decodes."""

    def __init__(self) -> None:
        self.model = sentencepiece.SentencePieceProcessor(model_file=str(real_model("v1")))
        self.n_decoded = 0

    def decode(self, ids: list[int]) -> str:
        self.n_decoded += len(ids)
        return str(self.model.decode(ids))

    def __getattr__(self, name: str) -> Callable[..., object]:
        return getattr(self.model, name)  # type: ignore[no-any-return]


@pytest.mark.parametrize("piece", ["▁Hello", "<s>", "▁", "<unk>", "<0x80>"])
def test_a_push_decodes_no_more_than_its_own_token(piece: str) -> None:
    counted = Counted()
    stream = SentencePieceStream(counted, {})
    token_id = counted.piece_to_id(piece)
    for _ in range(10_000):
        stream.push(token_id)
    assert counted.n_decoded <= 3 * 10_000
    assert len(stream._bytes) < 4


@pytest.mark.parametrize("sample", ["rewritten", "byte_level"])
def test_a_json_stream_never_decodes_a_window(tokenizer_of: TokenizerOf, sample: str) -> None:
    tokenizer = tokenizer_of(sample)

    def refuse(ids: list[int]) -> str:
        raise AssertionError(ids)

    from gptfast_cli.core.tokenizers.json_streams import json_stream

    vocabulary = tokenizer.vocabulary
    stream = json_stream(vocabulary._decoder, token_of=vocabulary._token, decode=refuse)
    ids = tokenizer.encode(" ".join(TEXTS))
    assert "".join([*map(stream.push, ids), stream.finish()]) == tokenizer.decode(ids)
