"""A small tokenizer file that would take endless time or memory is refused, and says why; a sound one is not."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import normalizers, pre_tokenizers

from gptfast_cli.core.errors import CorruptError, UsageError
from gptfast_cli.core.tokenizers import library, open_tokenizer
from gptfast_cli.core.tokenizers.limits import check_limits, max_replacement_bytes
from model_files import edit_json
from tokenizer_samples import JSON_SAMPLES, byte_level, write


def chain(kind: str, *steps: Any) -> dict[str, Any]:
    return {"type": "Sequence", kind: list(steps)}


def replace(pattern: str, content: str, kind: str = "String") -> dict[str, Any]:
    return {"type": "Replace", "pattern": {kind: pattern}, "content": content}


def split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


DOUBLING = [replace("a", "aa")] * 40
SEQUENCE = {"Sequence": {"id": "A", "type_id": 0}}
TWICE = {"type": "TemplateProcessing", "single": [SEQUENCE] * 2, "pair": [], "special_tokens": {}}
CHARACTER_MAP = base64.b64encode(bytes(4) + b"x" * 1000).decode()
HOSTILE: dict[str, dict[str, Any]] = {
    "a normalizer that doubles": {"normalizer": chain("normalizers", *DOUBLING)},
    "one inside of another": {"normalizer": chain("normalizers", chain("normalizers", *DOUBLING))},
    "matches of nothing": {"normalizer": chain("normalizers", *[replace("", "a", "Regex")] * 40)},
    "many steps": {"normalizer": chain("normalizers", *[{"type": "Lowercase"}] * 10_000)},
    "a long beginning": {"normalizer": {"type": "Prepend", "prepend": "a" * 1_000_000}},
    "a character that becomes a thousand": {
        "normalizer": {"type": "Precompiled", "precompiled_charsmap": CHARACTER_MAP}
    },
    "a normalizer's expression": {"normalizer": replace("(q+)+$", "x", "Regex")},
    "an expression of another script": {"pre_tokenizer": split(r"(\p{Han}+)+$")},
    "an expression of words": {"pre_tokenizer": split("(?:ab)*(?:ab)*(?:ab)*(?:ab)*c")},
    "many expressions": {"pre_tokenizer": chain("pretokenizers", *(split(f"a{n}") for n in range(60)))},
    "a long expression": {"pre_tokenizer": split("a" * 100_000)},
    "a post-processor that doubles": {"post_processor": chain("processors", *[TWICE] * 40)},
    "a decoder that doubles": {"decoder": chain("decoders", *DOUBLING)},
    "a decoder's expression": {"decoder": replace("(a+)+$", "x", "Regex")},
    "a long unigram piece": {
        "model": {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["a" * 100_000, -1.0]]}
    },
    "long words of WordPiece": {
        "model": {
            "type": "WordPiece",
            "unk_token": "a",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 10**9,
            "vocab": {"a": 0},
        }
    },
    "a key that is there twice": {},
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_tokenizer_json_that_would_not_end_is_refused(
    tmp_path: Path, case: str, capfd: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, "byte_level")
    file = tmp_path / "tokenizer.json"
    edit_json(file, lambda content: content.update(HOSTILE[case]))
    if not HOSTILE[case]:
        file.write_text('{"normalizer": null, ' + file.read_text().lstrip()[1:])
    with pytest.raises(CorruptError, match=r"tokenizer\.json: not a tokenizer") as caught:
        open_tokenizer(tmp_path)
    assert len(str(caught.value)) < 1000
    assert capfd.readouterr().err == ""  # nor does a panic speak


@pytest.mark.parametrize(
    "changes",
    [
        {"post_processor": TWICE | {"single": [{"SpecialToken": {"id": "none", "type_id": 0}}]}},
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
    ],
)
def test_a_panic_of_the_library_is_a_damaged_file(
    tmp_path: Path, changes: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, "byte_level")
    edit_json(tmp_path / "tokenizer.json", lambda content: content.update(changes))
    with pytest.raises(CorruptError, match=r"tokenizer\.json: not a tokenizer"):
        open_tokenizer(tmp_path)
    assert capfd.readouterr().err == ""


def test_a_panic_in_decoding_is_an_error_of_ours() -> None:
    class Panicking:
        def decode(self, ids: list[int]) -> str:
            raise PanicException(f"no token {ids}")

    class PanicException(BaseException):  # as Rust's bridge calls it
        pass

    with pytest.raises(UsageError, match="cannot decode these tokens"):
        library.decode(Panicking(), [7])  # type: ignore[arg-type]


@pytest.mark.parametrize("sample", JSON_SAMPLES)
def test_the_samples_are_within_the_limits(sample: str) -> None:
    check_limits(json.loads(JSON_SAMPLES[sample]().to_str()))


def test_a_chain_as_models_in_use_have_it_is_within_the_limits() -> None:
    tokenizer = byte_level()
    tokenizer.normalizer = normalizers.Sequence(  # ALBERT's, but for its character map
        [
            normalizers.Replace("``", '"'),
            normalizers.Replace("''", '"'),
            normalizers.NFKD(),
            normalizers.StripAccents(),
            normalizers.Lowercase(),
            normalizers.Replace(tokenizers.Regex(" {2,}"), " "),
        ]
    )
    o200k = (  # of GPT-4o
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
        r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
        r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    cuts = [pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated") for pattern in (o200k, r"\p{N}", "[一-龥]+")]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*cuts, pre_tokenizers.ByteLevel(use_regex=False)])
    check_limits(json.loads(tokenizer.to_str()))


def test_the_longest_text_of_a_character_map_is_counted_in_bytes() -> None:
    assert max_replacement_bytes(b"\x08\0\0\0" + bytes(8) + b"ab\0abcd\0c\0") == 4
    assert max_replacement_bytes(b"") == 0


def test_a_sentencepiece_character_map_that_grows_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "v1")
    model = tmp_path / "tokenizer.model"
    character_map = bytes(4) + b"x" * 100  # the field's length is one byte
    spec = b"\x12" + bytes([len(character_map)]) + character_map
    model.write_bytes(model.read_bytes() + b"\x1a" + bytes([len(spec)]) + spec)
    with pytest.raises(CorruptError, match=r"tokenizer\.model"):
        open_tokenizer(tmp_path)
