"""Tokens with flags, and the space that SentencePiece puts before a text, are those of transformers, whatever the file.

The oracle reads tokenizer.json itself. For tokenizer.model it needs a library that is not installed here, so that it is
built from the same pieces by what transformers calls for such a file.
"""

import random
import shutil
from collections.abc import Callable
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import sentencepiece
import tokenizers

from gptfast_cli.core.tokenizers import Tokenizer, open_tokenizer, tokenizer_files
from tokenizer_samples import byte_level, declare, metaspaced, words, write, write_trained

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

N_TEXTS = 300
FLAGS: dict[str, dict[str, bool]] = {
    "none": {},
    "lstrip": {"lstrip": True},
    "rstrip": {"rstrip": True},
    "single_word": {"single_word": True},
    "normalized": {"normalized": True},
    "not normalized": {"normalized": False},
    "both strips": {"lstrip": True, "rstrip": True},
    "all": {"lstrip": True, "rstrip": True, "single_word": True, "normalized": True},
}
ADDED = ("<|user|>", "word", "<a>", "<a><b>", "[X] y", "é_²")  # some in words, one with a space, two that begin alike

_FRAGMENTS = (
    *("<s>", "</s>", "<unk>", *ADDED, *ADDED),
    *(" ", " ", "  ", "\n", "\t", "\u00a0", "\x1c", "▁", "\u3000"),
    *("Hello", "the fox", "a", "é", "²", "_", "\u0301", "\u200d", "Ⓐ", "日本", "<", "user|>"),
)
LEADING = tuple(text for token in ("<s>", "<|user|>") for text in (token, f" {token}", f"{token} ", f"{token}{token}"))


def generated(seed: str) -> list[str]:
    """Texts with special tokens at every place: first, last, doubled, within words and between spaces."""
    rng = random.Random(seed)
    return [*LEADING, *("".join(rng.choices(_FRAGMENTS, k=rng.randint(1, 12))) for _ in range(N_TEXTS))]


def decoder_of(first_id: int, flags: dict[str, bool]) -> dict[str, dict[str, object]]:
    """An added_tokens_decoder with every token of ADDED, special and not."""
    tokens = {str(first_id + n): {"content": text, "special": n % 2 == 0, **flags} for n, text in enumerate(ADDED)}
    return {"1": {"content": "<s>", "special": True, **flags}, **tokens}


UNKNOWN = 0  # SentencePiece writes this token, and transformers leaves it out


def check(ours: Tokenizer, theirs: "PreTrainedTokenizerBase", texts: list[str]) -> None:
    """Ids alike, and the text that they make, at once and token by token."""
    different = []
    for text in texts:
        ids = theirs.encode(text, add_special_tokens=False)
        stream = ours.stream()
        streamed = "".join([*map(stream.push, ids), stream.finish()])
        is_written_alike = UNKNOWN in ids or streamed == theirs.decode(ids, skip_special_tokens=True)
        if ours.encode(text, bos=False) != ids or not is_written_alike:
            different.append((text, ours.encode(text, bos=False), ids))
    assert different == []


def opened(folder: Path) -> Tokenizer:
    tokenizer = open_tokenizer(folder)
    assert tokenizer is not None
    return tokenizer


def prepended() -> tokenizers.Tokenizer:
    """A BPE whose normalizer puts the space before each part, as Llama-2's tokenizer.json does."""
    tokenizer = metaspaced("never")
    tokenizer.normalizer = tokenizers.normalizers.Sequence(
        [tokenizers.normalizers.Prepend("▁"), tokenizers.normalizers.Replace(" ", "▁")]
    )
    tokenizer.pre_tokenizer = None
    return tokenizer


JSON: dict[str, Callable[[], tokenizers.Tokenizer]] = {
    "byte_level": byte_level,
    "metaspace_first": lambda: metaspaced("first"),
    "prepended": prepended,
}


@pytest.mark.parametrize("flags", FLAGS)
@pytest.mark.parametrize("sample", JSON)
def test_flags_beside_a_tokenizer_json_equal_transformers(tmp_path: Path, sample: str, flags: str) -> None:
    from transformers import AutoTokenizer

    file = JSON[sample]()
    file.add_tokens([tokenizers.AddedToken("<|user|>", rstrip=True)])  # there too, with other flags
    file.save(str(tmp_path / "tokenizer.json"))
    first_id = file.get_vocab_size() - 1
    decoder = decoder_of(first_id, FLAGS[flags])
    if sample == "byte_level":
        decoder["0"] = {"content": "<|begin_of_text|>", "special": True}
        del decoder["1"]
    declare(tmp_path, "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast", added_tokens_decoder=decoder)
    check(opened(tmp_path), AutoTokenizer.from_pretrained(tmp_path), generated(flags + sample))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small SentencePiece model that keeps spaces as they are."""
    folder = tmp_path_factory.mktemp("model")
    write_trained(folder, remove_extra_whitespaces=False, normalization_rule_name="identity")
    return folder


def model_proto(folder: Path) -> Any:
    """What transformers reads in a tokenizer.model, without the library that parses it."""
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    kinds = [(pieces.is_unknown, 2), (pieces.is_control, 3), (pieces.is_byte, 6)]
    return SimpleNamespace(
        pieces=[
            SimpleNamespace(
                piece=pieces.id_to_piece(i),
                score=pieces.get_score(i),
                type=next((kind for is_kind, kind in kinds if is_kind(i)), 1),
            )
            for i in range(pieces.vocab_size())
        ],
        trainer_spec=SimpleNamespace(byte_fallback=True, unk_piece="<unk>", unk_id=0),
        normalizer_spec=SimpleNamespace(
            precompiled_charsmap=b"", remove_extra_whitespaces=False, escape_whitespaces=True, add_dummy_prefix=True
        ),
    )


def model_oracle(folder: Path, decoder: dict[str, dict[str, object]], name: str, *, legacy: bool) -> Any:
    """What AutoTokenizer makes of a tokenizer.model, for a folder that names Llama's class or none."""
    from transformers import LlamaTokenizer
    from transformers.convert_slow_tokenizer import SpmConverter
    from transformers.tokenization_utils_base import generate_merges
    from transformers.tokenization_utils_tokenizers import TokenizersBackend

    proto = model_proto(folder)
    vocab = {piece.piece: i for i, piece in enumerate(proto.pieces)}
    added = {int(i): tokenizers.AddedToken(**fields) for i, fields in decoder.items()}
    given = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "extra_special_tokens": ["<s>", "</s>"]}
    if name == "LlamaTokenizer":
        merges = generate_merges(vocab, {piece.piece: piece.score for piece in proto.pieces})
        return LlamaTokenizer(vocab=vocab, merges=merges, legacy=legacy, added_tokens_decoder=added, **given)
    added = {int(i): tokenizers.AddedToken(**(fields | {"normalized": False})) for i, fields in decoder.items()}
    built = SpmConverter.build_tokenizer_from_spm_proto(proto=proto, vocab=vocab, legacy=legacy)
    return TokenizersBackend(tokenizer_object=built, added_tokens_decoder=added, **given)


@pytest.mark.parametrize(("flags", "legacy"), [*product(FLAGS, (True, False)), ("none", None), ("none", "not there")])
@pytest.mark.parametrize("name", ["LlamaTokenizer", "PreTrainedTokenizerFast"])
def test_flags_beside_a_tokenizer_model_equal_transformers(
    model: Path, tmp_path: Path, flags: str, name: str, legacy: object
) -> None:
    (tmp_path / "tokenizer.model").write_bytes((model / "tokenizer.model").read_bytes())
    decoder = decoder_of(400, FLAGS[flags])
    said = {} if legacy == "not there" else {"legacy": legacy}
    declare(tmp_path, "tokenizer_config.json", tokenizer_class=name, added_tokens_decoder=decoder, **said)
    is_legacy = name != "LlamaTokenizer" if legacy == "not there" else bool(legacy)
    theirs = model_oracle(tmp_path, decoder, name, legacy=is_legacy)
    check(opened(tmp_path), theirs, generated(f"{flags}{name}{legacy}"))


LISTED = {"43": {"content": "<x>", "special": True, "lstrip": True}}
STRIPPED = {"content": "w7", "lstrip": True, "rstrip": True, "normalized": False, "single_word": False}
OLDER = {"special_tokens_map.json": {"eos_token": "w8", "pad_token": STRIPPED}}


@pytest.mark.parametrize(
    "files",
    [
        OLDER,
        OLDER | {"tokenizer_config.json": {"eos_token": "w9"}},  # the map has the last word
        OLDER | {"tokenizer_config.json": {"eos_token": "w9", "added_tokens_decoder": LISTED}},  # and here none
        {"tokenizer_config.json": {"added_tokens_decoder": {"10": {"content": "w7", "special": False}}}},
        {"tokenizer_config.json": {"pad_token": "w7", "added_tokens_decoder": {"10": {**STRIPPED, "special": False}}}},
        {"tokenizer_config.json": {"image_token": "w7", "extra_special_tokens": ["w6"]}},
        {"added_tokens.json": {"<x>": 43, "<y>": 44}},
        {
            "added_tokens.json": {"<x>": 43},
            "special_tokens_map.json": {"pad_token": {"content": "<x>", "rstrip": True}},
        },
        {"special_tokens_map.json": {"eos_token": {"content": "</s>", "lstrip": True}}},  # tokenizer.json knows better
        {
            "tokenizer_config.json": {
                "added_tokens_decoder": {"2": {"content": "</s>", "special": True, "lstrip": True}}
            }
        },
    ],
)
def test_what_counts_of_the_older_files_is_what_counts_in_transformers(
    tmp_path: Path, files: dict[str, dict[str, object]]
) -> None:
    from transformers import AutoTokenizer

    file = words()
    file.pre_tokenizer = tokenizers.pre_tokenizers.Split(" ", "isolated")
    file.save(str(tmp_path / "tokenizer.json"))
    fast = {"tokenizer_class": "PreTrainedTokenizerFast"}
    for name, content in ({"tokenizer_config.json": {}} | files).items():
        declare(tmp_path, name, **(content | fast if name == "tokenizer_config.json" else content))
    ours, theirs = opened(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    check(ours, theirs, [" w1 w7 w2", "w6 <x> <y>w3", "w1 </s> w2", "w8w9 w7w7"])
    assert ours.stop_ids == (frozenset() if theirs.eos_token is None else {theirs.eos_token_id})


@pytest.mark.parametrize("sample", ["prepended", "v1"])
def test_a_copy_of_the_files_that_a_checkpoint_takes_encodes_alike(tmp_path: Path, sample: str) -> None:
    source, copy = tmp_path / "source", tmp_path / "copy"
    source.mkdir()
    copy.mkdir()
    file = prepended()
    if sample == "v1":
        write(source, "v1")
    else:
        file.save(str(source / "tokenizer.json"))
    decoder = decoder_of(32000 if sample == "v1" else file.get_vocab_size(), FLAGS["both strips"])
    declare(source, "tokenizer_config.json", added_tokens_decoder=decoder, legacy=False)
    declare(source, "config.json", model_type="mistral")
    for path in tokenizer_files(source):
        shutil.copy(path, copy)
    original, copied = opened(source), opened(copy)
    for text in generated("copy"):
        assert copied.encode(text) == original.encode(text)
    assert original.encode("a <|user|> b", bos=False)[1] == int(list(decoder)[1])
