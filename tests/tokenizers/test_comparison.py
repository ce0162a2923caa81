"""Vocabularies are compared whole: every token, merge, score, flag and rule, wherever in the file it stands."""

import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece

from gptfast_cli.core.tokenizers import Difference, SpecialTokens, open_tokenizer, vocabulary_difference
from gptfast_cli.core.tokenizers.agreement import _differences
from model_files import edit_json
from tokenizer_samples import JSON_SAMPLES, MODELS, RANKED, declare, write

Edit = Callable[[dict[str, Any]], None]
PairOf = Callable[[str], tuple[Path, Path]]
SPECIAL = SpecialTokens(1, True, frozenset({2}))


def difference(ours: Path, theirs: Path) -> Difference | None:
    one, other = open_tokenizer(ours, SPECIAL), open_tokenizer(theirs, SPECIAL)
    assert one is not None and other is not None
    return vocabulary_difference(one, other)


@pytest.fixture
def pair_of(tmp_path: Path) -> PairOf:
    """Two folders with the same sample."""

    def made(sample: str) -> tuple[Path, Path]:
        ours, theirs = tmp_path / "ours", tmp_path / "theirs"
        ours.mkdir()
        write(ours, sample)
        shutil.copytree(ours, theirs)
        return ours, theirs

    return made


@pytest.mark.parametrize("sample", [*MODELS, *JSON_SAMPLES, *RANKED])
def test_equal_vocabularies_have_no_difference(pair_of: PairOf, sample: str) -> None:
    ours, theirs = pair_of(sample)
    assert difference(ours, theirs) is None
    one, other = open_tokenizer(ours), open_tokenizer(theirs)
    assert one is not None and other is not None
    assert list(_differences(one.vocabulary, other.vocabulary)) == []  # nor where the files are not the same bytes


def test_the_same_vocabulary_in_two_formats_has_no_difference(tmp_path: Path) -> None:
    for sample in ("v1", "rewritten"):
        (tmp_path / sample).mkdir()
        write(tmp_path / sample, sample)
    assert difference(tmp_path / "v1", tmp_path / "rewritten") is None
    edit_json(tmp_path / "rewritten" / "tokenizer.json", exchange_tokens)
    found = difference(tmp_path / "v1", tmp_path / "rewritten")
    assert found is not None and re.fullmatch(r"token \d+ is", found.what)


def exchange_tokens(file: dict[str, Any]) -> None:
    vocab = file["model"]["vocab"]
    one, other = list(vocab)[-2:]
    vocab[one], vocab[other] = vocab[other], vocab[one]


def exchange_merges(file: dict[str, Any]) -> None:
    merges = file["model"]["merges"]
    merges[-1], merges[-2] = merges[-2], merges[-1]


def unmark(file: dict[str, Any]) -> None:
    next(token for token in file["added_tokens"] if token["special"])["special"] = False


def strip_left(file: dict[str, Any]) -> None:
    file["added_tokens"][-1]["lstrip"] = True


def lower(file: dict[str, Any]) -> None:
    file["normalizer"] = {"type": "Lowercase"}


def cut_digits(file: dict[str, Any]) -> None:
    file["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}]}


def ignore_merges(file: dict[str, Any]) -> None:
    file["model"]["ignore_merges"] = True


@pytest.mark.parametrize(
    ("edit", "what"),
    [
        (exchange_tokens, r"token \d+ is"),
        (exchange_merges, r"merge \d+ is"),
        (unmark, r"token \d+, '.*', is"),
        (strip_left, r"added token \d+, lstrip, is"),
        (lower, "normalizer is"),
        (cut_digits, "pre-tokenizer, pretokenizers 0, type, is"),
        (ignore_merges, "model, ignore_merges, is"),
    ],
)
def test_one_change_of_a_tokenizer_json_is_found(pair_of: PairOf, edit: Edit, what: str) -> None:
    ours, theirs = pair_of("byte_level")
    edit_json(theirs / "tokenizer.json", edit)
    found = difference(ours, theirs)
    assert found is not None and re.fullmatch(what, found.what)
    assert found.ours != found.theirs


def test_a_score_and_a_rule_of_a_sentencepiece_model_are_found(pair_of: PairOf) -> None:
    ours, theirs = pair_of("v1")
    model = (ours / "tokenizer.model").read_bytes()
    score = sentencepiece.SentencePieceProcessor(model_proto=model).get_score(20000)
    changes = {
        "score 20000 is": model.replace(b"\x15" + struct.pack("<f", score), b"\x15" + struct.pack("<f", score - 2)),
        "space removal is": model + b"\x1a\x02\x20\x01",  # normalizer_spec { remove_extra_whitespaces: true }
    }
    for what, changed in changes.items():
        (theirs / "tokenizer.model").write_bytes(changed)
        found = difference(ours, theirs)
        assert found is not None and re.fullmatch(what, found.what)


def test_exchanged_ranks_are_found(pair_of: PairOf) -> None:
    ours, theirs = pair_of("tiktoken")
    lines = (ours / "tokenizer.model").read_bytes().splitlines()
    (one, _), (other, _) = lines[2000].split(), lines[2001].split()
    lines[2000:2002] = [other + b" 2000", one + b" 2001"]
    (theirs / "tokenizer.model").write_bytes(b"\n".join(lines))
    found = difference(ours, theirs)
    assert found is not None and found.what == "token 2000 is"


@pytest.mark.parametrize("sample", ["v1", "tiktoken"])
def test_a_token_that_is_declared_beside_one_file_alone_is_found(pair_of: PairOf, sample: str) -> None:
    ours, theirs = pair_of(sample)
    declare(theirs, "tokenizer_config.json", added_tokens_decoder={"40000": {"content": "<|new|>", "special": True}})
    assert difference(ours, theirs) == Difference("token 40000 is", "none", "'<|new|>'")


def test_other_end_tokens_are_found(pair_of: PairOf) -> None:
    ours, theirs = pair_of("v1")
    one = open_tokenizer(ours, SPECIAL)
    other = open_tokenizer(theirs, SpecialTokens(1, True, frozenset({2, 7})))
    assert one is not None and other is not None
    assert vocabulary_difference(one, other) == Difference("end token is", "2", "2, 7")
