"""Whatever the files of a model hold, opening them ends well or in an error of ours, in bounded memory."""

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import foreign_files as foreign
from gptfast_cli.core.checkpoints.reader import open_checkpoint
from gptfast_cli.core.errors import CorruptError
from gptfast_cli.core.models.weights import weight_shapes
from llama_oracle import random_llama
from model_files import converted, saved, settings_in
from spoiling import UNHURRIED, bounded_memory, check

SMALL = {"num_hidden_layers": 1, "vocab_size": 33, "hidden_size": 12, "intermediate_size": 16}

FOLDERS: dict[str, Callable[[Path], Path]] = {
    "single": lambda f: saved(f, **SMALL),
    "sharded": lambda f: saved(f, sharded=True, **SMALL | {"vocab_size": 500}),
    "checkpoint": lambda f: converted(saved(f, **SMALL), settings_in(f.parent)).path,
    "pytorch_model": lambda f: foreign.write_pytorch_model(f, random_llama(**SMALL)),
    "gpt_fast": lambda f: foreign.write_gpt_fast(f, random_llama(**SMALL)),
    "meta": lambda f: foreign.write_meta(f, random_llama(**SMALL)),
    "llama2_c 0": lambda f: foreign.write_llama2_c(f / "model.bin", random_llama(**SMALL), 0).parent,
    "llama2_c 1": lambda f: foreign.write_llama2_c(f / "model.bin", random_llama(**SMALL), 1).parent,
}
FILES = (
    ("single", "config.json"),
    ("single", "model.safetensors"),
    ("sharded", "model.safetensors.index.json"),
    ("checkpoint", "gptfast.json"),
    ("checkpoint", "weights-00001.safetensors"),
    ("pytorch_model", "pytorch_model.bin"),
    ("gpt_fast", "model.pth"),
    ("meta", "params.json"),
    ("meta", "consolidated.00.pth"),
    ("llama2_c 0", "model.bin"),
    ("llama2_c 1", "model.bin"),
)


def use(folder: Path) -> None:
    """Open a model, and read all of it."""
    checkpoint = open_checkpoint(folder, allow_pickle=True)
    for name in weight_shapes(checkpoint.config):
        assert checkpoint.weight(name).n_bytes > 0


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
@settings(max_examples=30, suppress_health_check=UNHURRIED)
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


@pytest.mark.parametrize("file", ["config.json", "model.safetensors.index.json"])
def test_a_file_larger_than_any_model_has_is_not_read(tmp_path: Path, file: str) -> None:
    folder = saved(tmp_path / "model", sharded=True)
    with (folder / file).open("ab") as opened:
        opened.truncate(40_000_000_000)  # sparse
    with pytest.raises(CorruptError, match=f"{file}: has 40.0 GB"):
        open_checkpoint(folder)
