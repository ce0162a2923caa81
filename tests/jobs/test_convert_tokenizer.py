"""Converting compares the tokenizer files of a folder and says where they part; it never fails for that."""

from base64 import b64encode
from pathlib import Path

import tokenizers

from gptfast_cli.core.events import Note
from gptfast_cli.core.jobs.convert import ConvertRequest, run
from gptfast_cli.core.tokenizers import open_tokenizer
from model_files import drained, saved, settings_in


def with_words(folder: Path) -> Path:
    words = tokenizers.models.WordLevel({"<unk>": 0, "w": 1}, unk_token="<unk>")
    tokenizers.Tokenizer(words).save(str(folder / "tokenizer.json"))
    return folder


def with_bytes(folder: Path) -> Path:
    lines = (b64encode(bytes([byte])) + b" %d\n" % byte for byte in range(256))
    (folder / "tokenizer.model").write_bytes(b"".join(lines))
    return folder


def notes(request: ConvertRequest) -> list[str]:
    events, _ = drained(run(request))
    return [event.text for event in events if isinstance(event, Note) and "beside it" in event.text]


def test_files_that_differ_are_noted_and_the_first_is_used(tmp_path: Path) -> None:
    source = with_words(with_bytes(saved(tmp_path / "model")))
    (note,) = notes(ConvertRequest(str(source), settings_in(tmp_path), out=tmp_path / "out"))
    assert note == "tokenizer.json is used; tokenizer.model beside it encodes or decodes 'Hello, world!' differently."
    tokenizer = open_tokenizer(tmp_path / "out")
    assert tokenizer is not None
    assert tokenizer.encode("w") == [1]


def test_a_file_that_cannot_be_read_is_noted_and_the_other_is_used(tmp_path: Path) -> None:
    source = with_bytes(saved(tmp_path / "model"))
    (source / "tokenizer.json").write_text("{}")
    (note,) = notes(ConvertRequest(str(source), settings_in(tmp_path)))
    assert note.startswith("tokenizer.model is used; tokenizer.json beside it cannot be read: not a tokenizer")


def test_the_tokenizer_of_another_model_is_compared_with_its_own_files(tmp_path: Path) -> None:
    source, other = saved(tmp_path / "model"), tmp_path / "other"
    with_words(source)
    with_words(with_bytes(saved(other)))
    assert len(notes(ConvertRequest(str(source), settings_in(tmp_path), tokenizer_from=str(other)))) == 1


def test_a_single_file_needs_no_note(tmp_path: Path) -> None:
    assert notes(ConvertRequest(str(with_words(saved(tmp_path / "model"))), settings_in(tmp_path))) == []
