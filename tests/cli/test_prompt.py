"""A prompt is read from the one place where it was given, as it was given."""

import io
import os
import sys
from pathlib import Path

import pytest

from gptfast_cli.commands.prompt import DEFAULT, PromptSources
from gptfast_cli.core.errors import UsageError


def read(
    argument: str | None = None, file: Path | None = None, ids: str | None = None, length: int | None = None
) -> str | tuple[int, ...] | None:
    return PromptSources(argument, file, ids, length).read()


def stdin_holds(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


def test_the_argument_is_the_prompt_to_the_last_character() -> None:
    assert read(" two  spaces \n") == " two  spaces \n"
    assert read("") == ""


@pytest.mark.parametrize(("content", "prompt"), [(b"The cat\n", "The cat"), (b"", DEFAULT)])
def test_without_a_prompt_it_is_what_a_pipe_or_file_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, prompt: str
) -> None:
    reading, writing = os.pipe()
    os.write(writing, content)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        monkeypatch.setattr(sys, "stdin", pipe)
        assert read("given") == "given", "a prompt that was given is the prompt"
        assert read() == prompt
    (tmp_path / "prompt").write_bytes(content)
    with (tmp_path / "prompt").open() as file:
        monkeypatch.setattr(sys, "stdin", file)
        assert read() == prompt


def test_a_pipe_that_nobody_writes_into_is_not_waited_for_without_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading) as pipe, os.fdopen(writing, "w"):
        monkeypatch.setattr(sys, "stdin", pipe)
        assert PromptSources(None, None, None, None).read(wait_seconds=0.01) == DEFAULT
    assert "use - as PROMPT" in capsys.readouterr().err


def test_the_null_device_is_no_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    with Path(os.devnull).open() as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        assert read() == DEFAULT


def test_with_nothing_given_there_is_a_prompt_to_see_something() -> None:
    assert read() == DEFAULT


@pytest.mark.parametrize(
    ("content", "prompt"), [(b"one\n", "one"), (b"one\r\n", "one"), (b"one\n\n", "one\n"), ("é".encode(), "é")]
)
def test_a_file_and_stdin_lose_the_newline_that_ends_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, prompt: str
) -> None:
    (tmp_path / "prompt").write_bytes(content)
    stdin_holds(monkeypatch, content)
    assert read(file=tmp_path / "prompt") == prompt
    assert read("-") == prompt


def test_token_ids_are_numbers_with_commas_between() -> None:
    assert read(ids="1, 20,3") == (1, 20, 3)


def test_a_synthetic_prompt_has_no_text() -> None:
    assert read(length=5) is None


def test_bytes_that_are_no_text_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "prompt").write_bytes(b"\xff")
    stdin_holds(monkeypatch, b"\xff")
    with pytest.raises(UsageError, match="not text in UTF-8"):
        read(file=tmp_path / "prompt")
    with pytest.raises(UsageError, match="not text in UTF-8"):
        read("-")


def test_two_prompts_are_one_too_many() -> None:
    with pytest.raises(UsageError, match="More than one prompt"):
        read("x", ids="1")
