"""llama2.c's tokenizer.bin means what the SentencePiece model means that it was exported from."""

import struct
from pathlib import Path

import pytest
import sentencepiece

import tokenizer_samples as samples
from foreign_files import write_tokenizer_bin
from gptfast_cli.core.errors import CorruptError
from gptfast_cli.core.tokenizers import open_tokenizer

# what the file does not carry cannot come back: it has a space for the mark itself
TEXTS = [text for text in samples.TEXTS if "▁" not in text]


@pytest.fixture(scope="module", params=["trained", *samples.REAL_SENTENCEPIECE])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of a model in SentencePiece's form and in llama2.c's."""
    theirs, ours = tmp_path_factory.mktemp("sentencepiece"), tmp_path_factory.mktemp("llama2_c")
    if request.param == "trained":
        samples.write_trained(theirs, normalization_rule_name="identity", remove_extra_whitespaces=False)
    else:
        (theirs / "tokenizer.model").write_bytes(samples.real_model(request.param).read_bytes())
    model = sentencepiece.SentencePieceProcessor(model_file=str(theirs / "tokenizer.model"))
    if model.is_control(3):
        pytest.skip("has control pieces beside BOS and EOS, which the file has no word for")
    write_tokenizer_bin(ours / "tokenizer.bin", model)
    return theirs, ours


def test_token_ids_and_texts_are_those_of_the_sentencepiece_model(pair: tuple[Path, Path]) -> None:
    theirs, ours = map(open_tokenizer, pair)
    assert theirs is not None
    assert ours is not None
    assert ours.special == theirs.special
    assert ours.vocab_size == theirs.vocab_size
    for text in TEXTS:
        ids = theirs.encode(text)
        assert ours.encode(text) == ids, text
        assert ours.decode(ids) == theirs.decode(ids), text


SPOILT = {
    "empty": b"",
    "cut within a piece": struct.pack("<ifi", 9, 0.0, 9) + b"abc",
    "cut within a score": struct.pack("<ifi", 9, 0.0, 1) + b"abc",
    "a length below zero": struct.pack("<ifi", 9, 0.0, -1) + b"abcdefgh",
    "a piece longer than the longest": struct.pack("<ifi", 2, 0.0, 3) + b"abc",
    "a score that is no number": struct.pack("<ifi", 9, float("nan"), 3) + b"abc",
    "a piece that is no text": struct.pack("<ifi", 9, 0.0, 1) + b"\xff",
    "a longest piece without end": struct.pack("<i", 2**31 - 1),
    "three pieces": struct.pack("<i", 9) + b"".join(struct.pack("<fi", 0.0, 1) + piece for piece in (b"a", b"b", b"c")),
    "a piece twice": struct.pack("<i", 9) + (struct.pack("<fi", 0.0, 1) + b"a") * 5,
    "an empty piece": struct.pack("<i", 9) + struct.pack("<fi", 0.0, 0) * 5,
}


@pytest.mark.parametrize("case", SPOILT)
def test_a_damaged_file_is_named(tmp_path: Path, case: str) -> None:
    (tmp_path / "tokenizer.bin").write_bytes(SPOILT[case])
    with pytest.raises(CorruptError, match=r"tokenizer\.bin"):
        open_tokenizer(tmp_path)
