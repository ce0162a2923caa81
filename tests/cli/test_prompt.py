"""A prompt is read from the one place where it was given, as it was given."""

import io
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
    with pytest.raises(UsageError, match="2 prompts"):
        read("x", ids="1")
