"""BOS and stop ids come from whichever file declares them, as transformers reads those files."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import processors

from gptfast_cli.core.errors import CorruptError
from gptfast_cli.core.tokenizers import SpecialTokens, Tokenizer, open_tokenizer, special_tokens
from tokenizer_samples import declare, words, write

FolderOf = Callable[[str], Path]


def opened(folder: Path) -> Tokenizer:
    tokenizer = open_tokenizer(folder)
    assert tokenizer is not None
    return tokenizer


def test_a_sentencepiece_model_alone_brings_its_own(tmp_path: Path) -> None:
    write(tmp_path, "v1")
    assert opened(tmp_path).special == SpecialTokens(bos_id=1, add_bos=True, stop_ids=frozenset({2}))


def test_a_model_trained_without_bos_and_eos_has_none(tmp_path: Path) -> None:
    write(tmp_path, "no_bos")
    assert opened(tmp_path).special == SpecialTokens(bos_id=None, add_bos=False, stop_ids=frozenset())


@pytest.mark.parametrize("name", ["generation_config.json", "config.json"])
@pytest.mark.parametrize(("value", "ids"), [(7, {7}), ([7, 9], {7, 9}), (None, set()), (-1, set())])
def test_stop_ids_of_every_file_are_united(tmp_path: Path, name: str, value: object, ids: set[int]) -> None:
    write(tmp_path, "v1")
    declare(tmp_path, name, eos_token_id=value)
    assert opened(tmp_path).stop_ids == {2} | ids


@pytest.mark.parametrize("token", ["[INST]", {"content": "[INST]", "lstrip": False}])
@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json"])
def test_the_tokenizers_own_eos_is_named_by_its_text(tmp_path: Path, name: str, token: object) -> None:
    write(tmp_path, "v3")
    declare(tmp_path, name, eos_token=token)
    declare(tmp_path, "generation_config.json", eos_token_id=[5])
    assert opened(tmp_path).stop_ids == {3, 5}


def test_a_chat_models_two_ends_both_stop(tmp_path: Path) -> None:
    write(tmp_path, "byte_level")
    declare(tmp_path, "tokenizer_config.json", bos_token="<|begin_of_text|>", eos_token="<|end_of_text|>")
    declare(tmp_path, "generation_config.json", bos_token_id=0, eos_token_id=[1, 2])
    assert opened(tmp_path).special == SpecialTokens(bos_id=0, add_bos=True, stop_ids=frozenset({1, 2}))


@pytest.mark.parametrize(
    ("flag", "added"), [({"add_bos_token": True}, True), ({"add_bos_token": False}, False), ({}, True)]
)
def test_the_flag_decides_on_bos_for_sentencepiece(tmp_path: Path, flag: dict[str, bool], added: bool) -> None:
    write(tmp_path, "v1")
    declare(tmp_path, "tokenizer_config.json", bos_token="<s>", **flag)
    tokenizer = opened(tmp_path)
    assert tokenizer.bos_id == 1
    assert (tokenizer.encode("a")[0] == 1) == added


@pytest.mark.parametrize("flag", [True, False])
@pytest.mark.parametrize("with_template", [True, False])
def test_the_post_processor_decides_on_bos_for_tokenizer_json(tmp_path: Path, flag: bool, with_template: bool) -> None:
    from transformers import AutoTokenizer

    file = words()
    if with_template:
        file.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    file.save(str(tmp_path / "tokenizer.json"))
    fields = {"bos_token": "<s>", "eos_token": "</s>", "tokenizer_class": "PreTrainedTokenizerFast"}
    declare(tmp_path, "tokenizer_config.json", add_bos_token=flag, **fields)
    ids = opened(tmp_path).encode("w0 w1")
    assert ids == AutoTokenizer.from_pretrained(tmp_path).encode("w0 w1")
    assert (ids[0] == 1) == with_template


def test_a_bos_that_is_declared_null_is_none_whatever_config_json_says(tmp_path: Path) -> None:
    write(tmp_path, "words")
    declare(tmp_path, "tokenizer_config.json", bos_token=None, add_bos_token=False)
    declare(tmp_path, "config.json", bos_token_id=1)
    assert opened(tmp_path).bos_id is None


def test_a_bos_known_by_id_alone_is_kept_and_not_added(tmp_path: Path) -> None:
    write(tmp_path, "words")
    declare(tmp_path, "config.json", bos_token_id=1)
    tokenizer = opened(tmp_path)
    assert tokenizer.bos_id == 1
    assert tokenizer.encode("w0") == [3]


def test_a_folder_without_a_tokenizer_still_knows_its_ids(tmp_path: Path) -> None:
    declare(tmp_path, "config.json", bos_token_id=1, eos_token_id=2)
    assert open_tokenizer(tmp_path) is None
    assert special_tokens(tmp_path) == SpecialTokens(bos_id=1, add_bos=False, stop_ids=frozenset({2}))


def test_a_named_special_token_is_left_out_of_the_text(tmp_path: Path) -> None:
    """A token of the plain vocabulary becomes special by being given a role, as in transformers."""
    from transformers import AutoTokenizer

    write(tmp_path, "words")
    declare(tmp_path, "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast", pad_token="w7")
    ids = [3, 10, 4]
    assert opened(tmp_path).decode(ids) == AutoTokenizer.from_pretrained(tmp_path).decode(ids, skip_special_tokens=True)
    assert opened(tmp_path).decode(ids) == "w0 w1"


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("generation_config.json", {"eos_token_id": "2"}),
        ("config.json", {"eos_token_id": [2, True]}),
        ("config.json", {"bos_token_id": {"id": 1}}),
        ("tokenizer_config.json", {"eos_token": 2}),
        ("tokenizer_config.json", {"eos_token": {"text": "</s>"}}),
        ("tokenizer_config.json", {"added_tokens_decoder": [1]}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"x": {"content": "a"}}}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"1": "a"}}),
        ("tokenizer_config.json", {"extra_special_tokens": 5}),
        ("added_tokens.json", {"<a>": None}),
        ("added_tokens.json", {"<a>": [1]}),
    ],
)
def test_a_malformed_declaration_names_its_file(tmp_path: Path, name: str, fields: dict[str, object]) -> None:
    declare(tmp_path, name, **fields)
    with pytest.raises(CorruptError, match=name) as caught:
        open_tokenizer(tmp_path)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("generation_config.json", {"eos_token_id": [2, 10**30]}),
        ("config.json", {"bos_token_id": 2**31}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"9" * 5000: {"content": "<t>"}}}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"\u0663": {"content": "<t>"}}}),
    ],
)
def test_an_id_that_no_model_has_is_refused(tmp_path: Path, file: str, content: dict[str, object]) -> None:
    write(tmp_path, "v1")
    declare(tmp_path, file, **content)
    with pytest.raises(CorruptError, match=file):
        opened(tmp_path)
