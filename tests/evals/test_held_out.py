"""The texts to measure on: as many positions as are wanted, each text with its beginning, nothing across two texts."""

from pathlib import Path

import pytest

from gptfast_cli.core.checkpoints.store import bundled_folder
from gptfast_cli.core.errors import UsageError
from gptfast_cli.core.evals.held_out import N_POSITIONS, bundled_texts, texts_of_file
from gptfast_cli.core.tokenizers import Tokenizer, open_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    opened = open_tokenizer(bundled_folder("tiny"))
    assert opened is not None
    return opened


def n_positions(texts: list[list[int]]) -> int:
    return sum(len(text) - 1 for text in texts)


def test_bundled_documents_are_2048_positions_each_document_for_itself(tokenizer: Tokenizer) -> None:
    texts = bundled_texts(tokenizer, 512)
    assert n_positions(texts) == N_POSITIONS == 2048
    assert all(text[0] == tokenizer.bos_id and tokenizer.bos_id not in text[1:] for text in texts)
    documents = (bundled_folder("tiny").parent / "heldout.txt").read_text().split("\n\n")
    decoded = [tokenizer.decode(text) for text in texts]
    assert decoded[:-1] == documents[: len(texts) - 1]
    assert documents[len(texts) - 1].startswith(decoded[-1])


def test_a_document_longer_than_the_context_is_cut(tokenizer: Tokenizer) -> None:
    texts = bundled_texts(tokenizer, 50)
    assert max(len(text) for text in texts) == 50
    assert n_positions(texts) == N_POSITIONS


def test_a_file_is_read_in_windows_that_follow_one_another(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("One day, a fox met a badger. " * 400)
    texts = texts_of_file(tmp_path / "text", tokenizer, 100)
    assert n_positions(texts) == N_POSITIONS
    assert {len(text) for text in texts[:-1]} == {100}
    joined = [token for text in texts for token in text[1:]]
    assert joined == tokenizer.encode("One day, a fox met a badger. " * 400, bos=False)[: len(joined)]
    assert {len(text) for text in texts_of_file(tmp_path / "text", tokenizer, 4096)[:-1]} == {512}


def test_a_short_file_gives_what_it_has(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("A fox.")
    assert texts_of_file(tmp_path / "text", tokenizer, 512) == [tokenizer.encode("A fox.")]


@pytest.mark.parametrize(
    ("content", "message"), [(b"", "too short"), (b"\xff\xfe", "not text in UTF-8"), (None, "cannot be read")]
)
def test_a_file_that_cannot_serve_is_refused(
    tokenizer: Tokenizer, tmp_path: Path, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / "text").write_bytes(content)
    with pytest.raises(UsageError, match=message):
        texts_of_file(tmp_path / "text", tokenizer, 512)
