"""The tokenizer files of one folder are compared: texts, ids, and the way back."""

from pathlib import Path

import pytest
import tokenizers

from gptfast_cli.core.errors import CorruptError
from gptfast_cli.core.tokenizers import disagreements, open_tokenizer
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
    assert line == "tokenizer.json is used; tokenizer.model beside it encodes or decodes 'Hello, world!' differently."


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


def test_a_difference_after_a_special_token_alone_is_found(tmp_path: Path) -> None:
    write_same_twice(tmp_path)
    declare(tmp_path, "tokenizer_config.json", legacy=True)
    assert said(tmp_path) == []
    declare(tmp_path, "tokenizer_config.json", legacy=False)
    (line,) = said(tmp_path)
    assert "tokenizer.model beside it encodes or decodes '" in line


@pytest.mark.parametrize("name", ["LlamaTokenizer", None])
def test_a_space_that_begins_a_text_is_no_difference_worth_a_note(tmp_path: Path, name: str | None) -> None:
    write_same_twice(tmp_path)
    declare(tmp_path, "tokenizer_config.json", tokenizer_class=name, legacy=False)
    assert not any("' one space before'" in line for line in said(tmp_path))


def test_one_model_whose_files_put_a_space_before_the_first_part_alone_agrees(tmp_path: Path) -> None:
    write(tmp_path, "v1")
    file = rewritten("v1")
    file.normalizer = None  # type: ignore[assignment]
    file.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    file.save(str(tmp_path / "tokenizer.json"))
    declare(tmp_path, "tokenizer_config.json", legacy=False)
    assert said(tmp_path) == []
    declare(tmp_path, "tokenizer_config.json", legacy=True)
    (line,) = said(tmp_path)
    assert "differently" in line


def test_a_flag_of_an_added_token_in_one_file_alone_is_found(tmp_path: Path) -> None:
    write_same_twice(tmp_path)
    file = rewritten("v1")
    file.add_special_tokens([tokenizers.AddedToken("<|end|>", rstrip=True)])
    file.save(str(tmp_path / "tokenizer.json"))
    declare(tmp_path, "special_tokens_map.json", additional_special_tokens=["<|end|>"])
    declare(tmp_path, "added_tokens.json", **{"<|end|>": 32000})
    (line,) = said(tmp_path)
    assert "'a <|end|> b" in line
    fields = {"content": "<|end|>", "special": True, "rstrip": True}
    declare(tmp_path, "tokenizer_config.json", added_tokens_decoder={"32000": fields})  # counts for both
    assert said(tmp_path) == []


@pytest.mark.parametrize("name", ["LlamaTokenizer", None])
def test_a_class_that_treats_one_of_the_files_specially_is_no_difference(tmp_path: Path, name: str | None) -> None:
    write_same_twice(tmp_path)
    declare(tmp_path, "tokenizer_config.json", tokenizer_class=name, legacy=True)
    assert said(tmp_path) == []


@pytest.mark.parametrize("flag", [True, False])
@pytest.mark.parametrize("beside", [True, False])
def test_a_flag_about_bos_that_is_not_followed_is_reported(tmp_path: Path, flag: bool, beside: bool) -> None:
    if beside:
        write(tmp_path, "v1")
    file = rewritten("v1")
    if flag:
        file.post_processor = tokenizers.processors.ByteLevel()
    file.save(str(tmp_path / "tokenizer.json"))
    declare(tmp_path, "tokenizer_config.json", add_bos_token=flag)
    (line,) = said(tmp_path)
    assert line.startswith(
        f'tokenizer.json is used; tokenizer_config.json beside it has "add_bos_token": {str(flag).lower()}, but'
    )
    declare(tmp_path, "tokenizer_config.json", add_bos_token=not flag)
    assert said(tmp_path) == []


@pytest.mark.parametrize("sample", ["v1", "rewritten"])
def test_a_flag_that_would_end_every_prompt_is_reported_and_not_followed(tmp_path: Path, sample: str) -> None:
    write(tmp_path, sample)
    declare(tmp_path, "tokenizer_config.json", add_eos_token=True, eos_token="</s>")
    (line,) = said(tmp_path)
    assert '"add_eos_token": true, which is not followed' in line
    tokenizer = open_tokenizer(tmp_path)
    assert tokenizer is not None
    assert tokenizer.encode("Hello") == [1, 22557]


@pytest.mark.parametrize(("broken", "used"), [("tokenizer.json", "tokenizer.model"), ("tekken.json", "tokenizer.json")])
def test_an_unreadable_file_is_reported_beside_the_one_in_use(tmp_path: Path, broken: str, used: str) -> None:
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
