"""The tokenizer files of one folder are compared: texts, ids, and the way back."""

from pathlib import Path

import pytest
import tokenizers

from gptfast_cli.core.errors import CorruptError
from gptfast_cli.core.tokenizers import disagreements
from gptfast_cli.core.tokenizers.agreement import SAMPLES
from gptfast_cli.core.tokenizers.formats.tiktoken import _special
from tokenizer_samples import declare, rewritten, write


def said(folder: Path) -> list[str]:
    return [str(disagreement) for disagreement in disagreements(folder)]


def write_same_twice(folder: Path) -> None:
    write(folder, "v1")
    rewritten("v1").save(str(folder / "tokenizer.json"))


def test_one_model_in_two_formats_agrees(tmp_path: Path) -> None:
    write_same_twice(tmp_path)
    assert said(tmp_path) == []


def test_ranks_agree_with_what_transformers_makes_of_them(tmp_path: Path) -> None:
    from transformers.convert_slow_tokenizer import TikTokenConverter

    write(tmp_path, "tiktoken")
    special = [token.content for token in _special(0)]
    converter = TikTokenConverter(str(tmp_path / "tokenizer.model"), extra_special_tokens=special)
    converter.converted().save(str(tmp_path / "tokenizer.json"))
    assert said(tmp_path) == []


def test_a_difference_names_both_files_and_the_text(tmp_path: Path) -> None:
    write(tmp_path, "v3")
    rewritten("v1").save(str(tmp_path / "tokenizer.json"))
    (line,) = said(tmp_path)
    assert line == "tokenizer.json is used; tokenizer.model beside it encodes or decodes 'Hello, world!' otherwise."


def test_a_difference_of_decoding_alone_is_found(tmp_path: Path) -> None:
    write(tmp_path, "v1")
    other = rewritten("v1")
    other.decoder = tokenizers.decoders.Fuse()
    other.save(str(tmp_path / "tokenizer.json"))
    assert "Hello, world!" in said(tmp_path)[0]


def test_a_special_token_that_one_file_lacks_is_found(tmp_path: Path) -> None:
    write(tmp_path, "v1")
    other = rewritten("v1")
    other.add_special_tokens(["<|im_end|>"])
    other.save(str(tmp_path / "tokenizer.json"))
    assert "<|im_end|>" in said(tmp_path)[0]


@pytest.mark.parametrize(("broken", "used"), [("tokenizer.json", "tokenizer.model"), ("tekken.json", "tokenizer.json")])
def test_an_unreadable_file_is_told_beside_the_one_in_use(tmp_path: Path, broken: str, used: str) -> None:
    write_same_twice(tmp_path)
    (tmp_path / broken).write_text("{}")
    (line,) = said(tmp_path)
    assert line.startswith(f"{used} is used; {broken} beside it cannot be read: not a")


def test_a_text_that_one_file_cannot_encode_is_a_difference(tmp_path: Path) -> None:
    write(tmp_path, "v1")
    plain = tokenizers.Tokenizer(tokenizers.models.WordLevel({"Hello": 0}))
    plain.save(str(tmp_path / "tokenizer.json"))
    assert "Hello, world!" in said(tmp_path)[0]


@pytest.mark.parametrize("samples", [[], ["v1"], ["words"], ["tekken"]])
def test_where_there_is_nothing_to_compare_nothing_is_said(tmp_path: Path, samples: list[str]) -> None:
    for sample in samples:
        write(tmp_path, sample)
    assert said(tmp_path) == []


def test_damage_in_a_json_file_beside_them_is_an_error(tmp_path: Path) -> None:
    write_same_twice(tmp_path)
    declare(tmp_path, "tokenizer_config.json", eos_token=5)
    with pytest.raises(CorruptError, match="tokenizer_config"):
        said(tmp_path)


def test_the_samples_are_different_texts() -> None:
    assert len(set(SAMPLES)) == len(SAMPLES) > 24
