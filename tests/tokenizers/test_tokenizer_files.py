"""Which files of a folder make its tokenizer, what a copy needs, and what is said of a damaged one."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from gptfast_cli.core.errors import CorruptError
from gptfast_cli.core.tokenizers import SpecialTokens, Tokenizer, open_tokenizer, tokenizer_files
from gptfast_cli.core.tokenizers.declarations import read_declarations
from gptfast_cli.core.tokenizers.formats import formats
from tokenizer_samples import declare, real_model, write

NESTED = b"[" * 100_000


def test_ranks_of_formats_are_all_different() -> None:
    assert len({plug.rank for plug in formats.values()}) == len(formats)


@pytest.mark.parametrize("name", formats)
@pytest.mark.parametrize("content", [b"", b"\n", b"{}", b"\x00" * 100, b"IQ== 0\nIg== 1\n"])
def test_every_format_refuses_a_file_that_is_none(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / formats[name].file_names[0]
    path.write_bytes(content)
    with pytest.raises(CorruptError, match=path.name):
        formats[name].read(path, read_declarations(tmp_path))


def test_tokenizer_json_is_taken_before_tokenizer_model(tmp_path: Path) -> None:
    write(tmp_path, "v1")
    write(tmp_path, "words")
    tokenizer = open_tokenizer(tmp_path)
    assert tokenizer is not None
    assert tokenizer.encode("w0 w1") == [3, 4]


def test_an_unreadable_tokenizer_json_gives_way_to_tokenizer_model(tmp_path: Path) -> None:
    write(tmp_path, "v1")
    (tmp_path / "tokenizer.json").write_text('{"version": "9.9"}')
    tokenizer = open_tokenizer(tmp_path)
    assert tokenizer is not None
    assert tokenizer.vocab_size == 32000


def test_a_copy_of_the_named_files_encodes_and_stops_alike(
    tmp_path: Path, tokenizer_of: Callable[[str], Tokenizer]
) -> None:
    source, copy = tmp_path / "source", tmp_path / "copy"
    source.mkdir()
    copy.mkdir()
    write(source, "v1")
    declare(source, "added_tokens.json", **{"<|im_end|>": 32000})
    declare(source, "special_tokens_map.json", eos_token="<|im_end|>")
    declare(source, "tokenizer_config.json", add_bos_token=False)
    declare(source, "generation_config.json", eos_token_id=[5])
    declare(source, "config.json", eos_token_id=9, bos_token_id=1)
    (source / "model.safetensors").touch()
    original = open_tokenizer(source)
    assert original is not None

    for path in tokenizer_files(source):
        shutil.copy(path, copy)
    assert sorted(path.name for path in copy.iterdir()) == [
        "added_tokens.json",
        "generation_config.json",
        "special_tokens_map.json",
        "tokenizer.model",
        "tokenizer_config.json",
    ]
    copied = open_tokenizer(copy, original.special)
    assert copied is not None
    assert copied.special == SpecialTokens(bos_id=1, add_bos=False, stop_ids=frozenset({5, 9, 32000}))
    assert copied.encode("Hello<|im_end|>") == original.encode("Hello<|im_end|>")


def test_a_folder_without_tokenizer_files_names_none(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert tokenizer_files(tmp_path) == ()
    assert open_tokenizer(tmp_path) is None


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", b""),
        ("tokenizer.json", b"[]"),
        ("tokenizer.json", b"{}"),
        ("tokenizer.json", b"\xff\xfe"),
        ("tokenizer.json", NESTED),
        ("tokenizer.json", b'{"version":"1.0","model":{"type":"BPE","vocab":{"a":0},"merges":["a b"]}}'),
        ("tokenizer.json", b'{"version":"1.0","added_tokens":[],"model":{"type":"BPE","vocab":{},"merges":[]}}'),
        ("tokenizer.model", b""),
        ("tokenizer.model", b"\n"),
        ("tokenizer.model", b"IQ== 0\nIg== 1\n"),
        ("tokenizer.model", NESTED),
        ("tokenizer.model", real_model("v1").read_bytes()[:100_000]),
        ("tokenizer_config.json", b""),
        ("tokenizer_config.json", b"[]"),
        ("tokenizer_config.json", b"{'a': 1}"),
        ("tokenizer_config.json", b"\xff"),
        ("generation_config.json", b"7"),
        ("config.json", NESTED),
    ],
)
def test_a_damaged_file_is_named_with_the_next_step(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CorruptError, match=name) as caught:
        open_tokenizer(tmp_path)
    assert "--tokenizer-from" in caught.value.hint
    assert len(caught.value.message.splitlines()) == 1


@pytest.mark.parametrize("sample", ["v1", "rewritten", "byte_level", "tiktoken", "tekken"])
def test_every_token_of_a_vocabulary_is_found_by_its_id(sample: str, tokenizer_of: Callable[[str], Tokenizer]) -> None:
    vocabulary = tokenizer_of(sample).vocabulary
    written = [vocabulary.token_of(token_id) for token_id in range(vocabulary.vocab_size)]
    found = [None if text is None or "\ufffd" in text else vocabulary.id_of(text) for text in written]
    assert sum(token_id is not None for token_id in found) > 300
    assert all(token_id in (None, expected) for expected, token_id in enumerate(found))
    assert vocabulary.token_of(-1) is vocabulary.token_of(vocabulary.vocab_size) is vocabulary.token_of(2**40) is None
