"""Whatever a tokenizer's files hold, opening them ends well or in an error of ours, in bounded memory."""

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

import tokenizer_samples as samples
from foreign_files import write_tokenizer_bin
from gptfast_cli.core.tokenizers import open_tokenizer
from spoiling import UNHURRIED, bounded_memory, check


def write_sample(folder: Path, sample: str) -> Path:
    folder.mkdir()
    samples.write(folder, sample)
    config = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "add_bos_token": True}
    added = {"700": {"content": "<x>", "special": True}}
    samples.declare(folder, "tokenizer_config.json", **config, added_tokens_decoder=added)
    samples.declare(folder, "generation_config.json", bos_token_id=1, eos_token_id=[2, 3])
    return folder


def write_sentencepiece(folder: Path) -> Path:
    folder.mkdir()
    samples.write_trained(folder, normalization_rule_name="identity")
    return folder


def write_llama2_c(folder: Path) -> Path:
    model = write_sentencepiece(folder) / "tokenizer.model"
    write_tokenizer_bin(folder / "tokenizer.bin", sentencepiece.SentencePieceProcessor(model_file=str(model)))
    model.unlink()
    return folder


FOLDERS: dict[str, Callable[[Path], Path]] = {
    "byte_level": lambda f: write_sample(f, "byte_level"),
    "sentencepiece": write_sentencepiece,
    "tiktoken": lambda f: write_sample(f, "tiktoken"),
    "tekken": lambda f: write_sample(f, "tekken"),
    "llama2_c": write_llama2_c,
}
FILES = (
    ("byte_level", "tokenizer.json"),
    ("byte_level", "tokenizer_config.json"),
    ("byte_level", "generation_config.json"),
    ("sentencepiece", "tokenizer.model"),
    ("tiktoken", "tokenizer.model"),
    ("tekken", "tekken.json"),
    ("llama2_c", "tokenizer.bin"),
)


def use(folder: Path) -> None:
    """Open a tokenizer, and go both ways."""
    tokenizer = open_tokenizer(folder)
    assert tokenizer is not None
    tokenizer.decode([*tokenizer.encode("Hello, wörld <s>"), *range(20)])


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A sound folder of a kind."""
    return cache(lambda kind: FOLDERS[kind](tmp_path_factory.mktemp("sound") / "model"))


@pytest.fixture
def _bounded() -> Iterator[None]:
    with bounded_memory():
        yield


@pytest.mark.usefixtures("_bounded")
@pytest.mark.parametrize(("kind", "file"), FILES)
@given(data=st.data())
@settings(max_examples=15, suppress_health_check=UNHURRIED)
def test_a_spoilt_file_ends_in_an_error_of_ours(sound: Callable[[str], Path], kind: str, file: str, data: Any) -> None:
    check(sound(kind) / file, use, data)


@pytest.mark.slow
@pytest.mark.usefixtures("_bounded")
@pytest.mark.parametrize(("kind", "file"), FILES)
@given(data=st.data())
@settings(max_examples=1000, suppress_health_check=UNHURRIED)
def test_many_spoilt_files_end_in_errors_of_ours(sound: Callable[[str], Path], kind: str, file: str, data: Any) -> None:
    check(sound(kind) / file, use, data)


@pytest.mark.parametrize(("kind", "file"), FILES)
def test_a_sound_file_is_read(sound: Callable[[str], Path], kind: str, file: str) -> None:
    assert (sound(kind) / file).is_file()
    use(sound(kind))
