"""Whatever the files of a model hold, opening them ends well or in an error of ours, in bounded memory."""

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

import foreign_files as foreign
import tokenizer_samples as samples
from gptfast_cli.core.checkpoints.reader import open_checkpoint
from gptfast_cli.core.errors import CorruptError
from gptfast_cli.core.models.weights import weight_shapes
from gptfast_cli.core.tokenizers import open_tokenizer
from llama_oracle import random_llama
from model_files import converted, saved, settings_in
from spoiling import UNHURRIED, bounded_memory, check

SMALL = {"num_hidden_layers": 1, "vocab_size": 33, "hidden_size": 12, "intermediate_size": 16}

Use = Callable[[Path], None]


def use_model(folder: Path) -> None:
    """Open a model, and read all of it."""
    checkpoint = open_checkpoint(folder, allow_pickle=True)
    for name in weight_shapes(checkpoint.config):
        assert checkpoint.weight(name).n_bytes > 0


def use_tokenizer(folder: Path) -> None:
    """Open a tokenizer, and go both ways."""
    tokenizer = open_tokenizer(folder)
    assert tokenizer is not None
    tokenizer.decode([*tokenizer.encode("Hello, wörld <s>"), *range(20)])


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
    foreign.write_tokenizer_bin(folder / "tokenizer.bin", sentencepiece.SentencePieceProcessor(model_file=str(model)))
    model.unlink()
    return folder


FOLDERS: dict[str, Callable[[Path], Path]] = {
    "single": lambda f: saved(f, **SMALL),
    "sharded": lambda f: saved(f, sharded=True, **SMALL | {"vocab_size": 500}),
    "checkpoint": lambda f: converted(saved(f, **SMALL), settings_in(f.parent)).path,
    "pytorch_model": lambda f: foreign.write_pytorch_model(f, random_llama(**SMALL)),
    "gpt_fast": lambda f: foreign.write_gpt_fast(f, random_llama(**SMALL)),
    "meta": lambda f: foreign.write_meta(f, random_llama(**SMALL)),
    "llama2_c 0": lambda f: foreign.write_llama2_c(f / "model.bin", random_llama(**SMALL), 0).parent,
    "llama2_c 1": lambda f: foreign.write_llama2_c(f / "model.bin", random_llama(**SMALL), 1).parent,
    "byte_level": lambda f: write_sample(f, "byte_level"),
    "sentencepiece": write_sentencepiece,
    "tiktoken": lambda f: write_sample(f, "tiktoken"),
    "tekken": lambda f: write_sample(f, "tekken"),
    "llama2_c": write_llama2_c,
}
FILES = (
    ("single", "config.json", use_model),
    ("single", "model.safetensors", use_model),
    ("sharded", "model.safetensors.index.json", use_model),
    ("checkpoint", "gptfast.json", use_model),
    ("checkpoint", "weights-00001.safetensors", use_model),
    ("pytorch_model", "pytorch_model.bin", use_model),
    ("gpt_fast", "model.pth", use_model),
    ("meta", "params.json", use_model),
    ("meta", "consolidated.00.pth", use_model),
    ("llama2_c 0", "model.bin", use_model),
    ("llama2_c 1", "model.bin", use_model),
    ("byte_level", "tokenizer.json", use_tokenizer),
    ("byte_level", "tokenizer_config.json", use_tokenizer),
    ("byte_level", "generation_config.json", use_tokenizer),
    ("sentencepiece", "tokenizer.model", use_tokenizer),
    ("tiktoken", "tokenizer.model", use_tokenizer),
    ("tekken", "tekken.json", use_tokenizer),
    ("llama2_c", "tokenizer.bin", use_tokenizer),
)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A sound folder of a kind."""
    return cache(lambda kind: FOLDERS[kind](tmp_path_factory.mktemp("sound") / "model"))


@pytest.fixture
def _bounded() -> Iterator[None]:
    with bounded_memory():
        yield


@pytest.mark.usefixtures("_bounded")
@pytest.mark.parametrize(("kind", "file", "use"), FILES)
@given(data=st.data())
@settings(max_examples=25, suppress_health_check=UNHURRIED)
def test_a_spoilt_file_ends_in_an_error_of_ours(
    sound: Callable[[str], Path], kind: str, file: str, use: Use, data: Any
) -> None:
    check(sound(kind) / file, use, data)


@pytest.mark.slow
@pytest.mark.usefixtures("_bounded")
@pytest.mark.parametrize(("kind", "file", "use"), FILES)
@given(data=st.data())
@settings(max_examples=1000, suppress_health_check=UNHURRIED)
def test_many_spoilt_files_end_in_errors_of_ours(
    sound: Callable[[str], Path], kind: str, file: str, use: Use, data: Any
) -> None:
    check(sound(kind) / file, use, data)


@pytest.mark.parametrize(("kind", "file", "use"), FILES)
def test_a_sound_file_is_read(sound: Callable[[str], Path], kind: str, file: str, use: Use) -> None:
    assert (sound(kind) / file).is_file()
    use(sound(kind))


@pytest.mark.parametrize("file", ["config.json", "model.safetensors.index.json"])
def test_a_file_larger_than_any_model_has_is_not_read(tmp_path: Path, file: str) -> None:
    folder = saved(tmp_path / "model", sharded=True)
    with (folder / file).open("ab") as opened:
        opened.truncate(40_000_000_000)  # sparse
    with pytest.raises(CorruptError, match=f"{file}: has 40.0 GB"):
        open_checkpoint(folder)
