"""The tokenizer of a GGUF file as the files of a Hugging Face folder, which all other code reads.

A vocabulary of the model "llama" becomes a tokenizer.model, one of "gpt2" a tokenizer.json; special tokens and chat
templates a tokenizer_config.json, the tokens that end an answer a generation_config.json. The files are kept below
`$GPTFAST_HOME/gguf`, by a hash of what they are made of: 300,000 tokens and merges take a second to write.
Source: https://github.com/ggml-org/llama.cpp, gguf-py/gguf/constants.py and src/llama-vocab.cpp.
"""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from gptfast_cli.core.errors import CorruptError, UsageError
from gptfast_cli.core.fields import DAMAGED, Fields
from gptfast_cli.core.files import disk_full_named, private_folder
from gptfast_cli.core.gguf import GgufArray, parse_shard_name, read_gguf
from gptfast_cli.core.tokenizers.declarations import GENERATION_CONFIG, TOKENIZER_CONFIG
from gptfast_cli.core.tokenizers.formats.sentencepiece import (
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    Piece,
    build_model,
)

_EDITION: Final = 1  # of the files that are made here
_FOLDER: Final = "gguf"
_PREFIX: Final = "tokenizer."


def tokenizer_folder(path: Path, home: Path) -> Path:
    """The folder with a model's tokenizer: its own, or of a GGUF file that with the tokenizer in its metadata.

    Raises CorruptError if that is damaged, UsageError if gptfast does not have its rules.
    """
    if path.is_dir():
        return path
    shard = parse_shard_name(path.name)
    metadata = read_gguf(path if shard is None else path.with_name(shard.siblings()[0])).metadata
    parent, _ = private_folder(home / _FOLDER)
    folder = parent / _digest(metadata)
    if not (folder / TOKENIZER_CONFIG).is_file():
        _write(folder, tokenizer_contents(metadata))
    return folder


def _digest(metadata: Fields) -> str:
    digest = hashlib.sha256(str(_EDITION).encode())
    for name, value in metadata.values.items():
        if name.startswith(_PREFIX):
            digest.update(name.encode())
            digest.update(value.content if isinstance(value, GgufArray) else repr(value).encode())
    return digest.hexdigest()[:24]


def _write(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write a folder so that it is there as a whole, or not at all."""
    with disk_full_named(folder):
        other = Path(tempfile.mkdtemp(prefix=".", dir=folder.parent))
        try:
            for name, content in contents.items():
                (other / name).write_bytes(content)
            other.replace(folder)
        except OSError:
            if not (folder / TOKENIZER_CONFIG).is_file():  # which another process may have made meanwhile
                raise
        finally:
            shutil.rmtree(other, ignore_errors=True)


def tokenizer_contents(metadata: Fields) -> dict[str, bytes]:
    """The files by their name. Raises CorruptError and UsageError as `tokenizer_folder`."""
    kind = metadata.text("tokenizer.ggml.model", "none")
    if kind in _NONE:
        return {TOKENIZER_CONFIG: b"{}"}
    if kind not in _WRITERS:
        raise UsageError(
            f"{metadata.where}: tokenizers of the kind {kind!r:.40} (tokenizer.ggml.model) are not supported.",
            _OTHER.format(metadata.where),
        )
    vocabulary = _read_vocabulary(metadata)
    name, content, adds_bos = _WRITERS[kind](vocabulary)
    config, stops = _config(vocabulary, adds_bos=adds_bos), _stop_ids(vocabulary)
    return {
        name: content,
        TOKENIZER_CONFIG: json.dumps(config).encode(),
        GENERATION_CONFIG: json.dumps({"eos_token_id": stops} if stops else {}).encode(),
    }


_NONE: Final = ("none", "no_vocab")
_OTHER: Final = "Convert it with the tokenizer of the original model: gptfast convert {} --tokenizer-from MODEL"


@dataclass(frozen=True, slots=True)
class _Vocabulary:
    """The vocabulary in the metadata: text, type and score of each token."""

    metadata: Fields
    tokens: list[str]
    kinds: list[int]
    scores: list[float]

    def id_of(self, role: str) -> int | None:
        """The id of a role such as "bos", if there is one."""
        key = f"tokenizer.ggml.{role}_token_id"
        value = self.metadata.values.get(key)
        if value is None or value in (-1, 2**32 - 1):
            return None
        if type(value) is not int or not 0 <= value < len(self.tokens):
            raise CorruptError(f"{self.metadata.where}: {key}: {value!r:.40} is none of {len(self.tokens)}", DAMAGED)
        return value

    def flag(self, name: str, *, default: bool) -> bool:
        """Such as `add_bos_token`."""
        return self.metadata.flag(f"tokenizer.ggml.{name}", default)


def _read_vocabulary(metadata: Fields) -> _Vocabulary:
    tokens = _array(metadata, "tokens", str)
    kinds = _array(metadata, "token_type", int) or [NORMAL] * len(tokens)
    scores = _array(metadata, "scores", float) or [0.0] * len(tokens)
    if not tokens or not len(tokens) == len(kinds) == len(scores):
        raise CorruptError(
            f"{metadata.where}: tokenizer.ggml.tokens: {len(tokens)} of them, {len(kinds)} types, {len(scores)} scores",
            DAMAGED,
        )
    last = max((number for number, kind in enumerate(kinds) if kind != UNUSED), default=0)  # padding ends it
    return _Vocabulary(metadata, tokens[: last + 1], kinds[: last + 1], scores[: last + 1])


def _array(metadata: Fields, name: str, kind: type) -> list[Any]:
    """A list of strings or numbers; empty if there is none."""
    key = f"tokenizer.ggml.{name}"
    value = metadata.values.get(key, [])
    values = list(value) if isinstance(value, list | GgufArray) else [value]
    if not all(type(each) is kind for each in values):
        raise CorruptError(f"{metadata.where}: {key}: is no list of {kind.__name__}", DAMAGED)
    return values


def _sentencepiece(vocabulary: _Vocabulary) -> tuple[str, bytes, bool]:
    unknown = None if UNKNOWN in vocabulary.kinds else vocabulary.id_of("unknown") or 0
    character_map = vocabulary.metadata.values.get("tokenizer.ggml.precompiled_charsmap", b"")
    roles = {role: vocabulary.tokens[at] for role in ("bos", "eos") if (at := vocabulary.id_of(role)) is not None}
    model = build_model(
        (
            Piece(
                text.replace(" ", "▁") if kind == USER_DEFINED else text, score, UNKNOWN if number == unknown else kind
            )
            for number, (text, score, kind) in enumerate(
                zip(vocabulary.tokens, vocabulary.scores, vocabulary.kinds, strict=True)
            )
        ),
        **roles,
        dummy_prefix=vocabulary.flag("add_space_prefix", default=True),
        removes_spaces=vocabulary.flag("remove_extra_whitespaces", default=False),
        character_map=bytes(each % 256 for each in character_map),
    )
    return "tokenizer.model", model, True


@dataclass(frozen=True, slots=True)
class _Words:
    """How a text is split into words before tokenization.

    steps:   pre-tokenizers of a tokenizer.json
    is_nfc:  whether the text is normalized first
    is_whole: whether a word that is a token is encoded as that, even if no merges lead to it
    adds_bos: whether BOS stands before each text if the file does not say
    """

    steps: tuple[Mapping[str, Any], ...]
    is_nfc: bool = False
    is_whole: bool = False
    adds_bos: bool = False


def _split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def _bytes(*, use_regex: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


_DIGITS: Final = {"type": "Digits", "individual_digits": True}
_AS_BYTES: Final = _bytes(use_regex=False)
_GPT_2: Final = _bytes(use_regex=True)
_ENDINGS: Final = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST: Final = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"


def _cl100k(digits: str, *, letters: str = r"\p{L}", marks: str = "") -> dict[str, Any]:
    """The words of tiktoken's cl100k_base, with so many digits in one."""
    return _split(rf"{_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?{letters}+|{digits}| ?[^\s\p{{L}}{marks}\p{{N}}]+[\r\n]*|{_REST}")


def _o200k(ending: str, digits: str) -> dict[str, Any]:
    """The words of tiktoken's o200k_base, which end where a capital follows."""
    opening = r"[^\r\n\p{L}\p{N}]?"
    return _split(
        rf"{opening}{_UPPER}*{_LOWER}+{ending}|{opening}{_UPPER}+{_LOWER}*{ending}|{digits}"
        rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_REST}"
    )


_LLAMA_3: Final = _Words((_cl100k(r"\p{N}{1,3}"), _AS_BYTES), is_whole=True, adds_bos=True)
_THREE_DIGITS: Final = _Words((_cl100k(r"\p{N}{1,3}"), _AS_BYTES))
_ONE_DIGIT: Final = _Words((_cl100k(r"\p{N}"), _AS_BYTES))
_DIGITS_GPT_2: Final = _Words((_DIGITS, _GPT_2))
_GPT_4O: Final = _Words((_o200k(f"{_ENDINGS}?", r"\p{N}{1,3}"), _AS_BYTES))
_SEED: Final = _split(rf"{_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_REST}")

_WORDS: Final[Mapping[str, _Words]] = {
    **dict.fromkeys(("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0"), _LLAMA_3),
    **dict.fromkeys(("dbrx", "smaug-bpe", "glm4", "chatglm-bpe"), _THREE_DIGITS),
    "qwen2": _Words(_ONE_DIGIT.steps, is_nfc=True),
    **dict.fromkeys(("deepseek-r1-qwen", "stablelm2", "hunyuan", "megrez"), _ONE_DIGIT),
    "qwen35": _Words((_cl100k(r"\p{N}", letters=r"[\p{L}\p{M}]", marks=r"\p{M}"), _AS_BYTES), is_nfc=True),
    "tekken": _Words((_o200k("", r"\p{N}"), _AS_BYTES), is_whole=True, adds_bos=True),
    **dict.fromkeys(("gpt-4o", "llama4"), _GPT_4O),
    "seed-coder": _Words((_SEED, _AS_BYTES)),
    **dict.fromkeys(("starcoder", "refact", "smollm", "codeshell"), _DIGITS_GPT_2),
    **dict.fromkeys(("gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion"), _Words((_GPT_2,))),
}
"""By `tokenizer.ggml.pre`: the regular expressions of the original tokenizers."""


def _byte_level(vocabulary: _Vocabulary) -> tuple[str, bytes, bool]:
    metadata = vocabulary.metadata
    pre = metadata.text("tokenizer.ggml.pre", "default")
    if pre not in _WORDS:
        raise UsageError(
            f"{metadata.where}: splits a text into words by {pre!r:.40} (tokenizer.ggml.pre), which gptfast lacks.",
            _OTHER.format(metadata.where),
        )
    words = _WORDS[pre]
    used = [
        (number, text, kind)
        for number, (text, kind) in enumerate(zip(vocabulary.tokens, vocabulary.kinds, strict=True))
        if kind != UNUSED and text
    ]
    adds_bos = vocabulary.flag("add_bos_token", default=words.adds_bos)
    content = {
        "version": "1.0",
        "added_tokens": [_added(*token) for token in used if token[2] in (CONTROL, USER_DEFINED, UNKNOWN)],
        "normalizer": {"type": "NFC"} if words.is_nfc else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": words.steps},
        "post_processor": _before_texts(vocabulary) if adds_bos else None,
        "decoder": _AS_BYTES,
        "model": {
            "type": "BPE",
            "ignore_merges": words.is_whole,
            "vocab": {text: number for number, text, _ in reversed(used)},  # of two tokens of a text the first
            "merges": [_merge(metadata, number, text) for number, text in enumerate(_array(metadata, "merges", str))],
        },
    }
    return "tokenizer.json", json.dumps(content).encode(), adds_bos


def _added(number: int, text: str, kind: int) -> dict[str, Any]:
    flags = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False}
    return {"id": number, "content": text, "special": kind != USER_DEFINED, **flags}


def _merge(metadata: Fields, number: int, text: str) -> list[str]:
    at = text.find(" ", 1)
    if at < 0 or at + 1 == len(text):
        raise CorruptError(f"{metadata.where}: tokenizer.ggml.merges: {number}: {text!r:.40} is no pair", DAMAGED)
    return [text[:at], text[at + 1 :]]


def _before_texts(vocabulary: _Vocabulary) -> dict[str, Any] | None:
    """The post-processor that puts BOS before each text."""
    bos = vocabulary.id_of("bos")
    if bos is None:
        return None
    text = vocabulary.tokens[bos]
    first, second = ({"Sequence": {"id": name, "type_id": number}} for number, name in enumerate("AB"))
    token = {"SpecialToken": {"id": text, "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [token, first],
        "pair": [token, first, second],
        "special_tokens": {text: {"id": text, "ids": [bos], "tokens": [text]}},
    }


_WRITERS: Final = {"llama": _sentencepiece, "gpt2": _byte_level}

_ROLES: Final = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}


def _config(vocabulary: _Vocabulary, *, adds_bos: bool) -> dict[str, Any]:
    """Special tokens, BOS rule and chat templates."""
    config: dict[str, Any] = {
        name: vocabulary.tokens[at] for role, name in _ROLES.items() if (at := vocabulary.id_of(role)) is not None
    }
    config["add_bos_token"] = vocabulary.flag("add_bos_token", default=adds_bos) and "bos_token" in config
    templates = dict(_templates(vocabulary.metadata))
    if len(templates) > 1:
        config["chat_template"] = [{"name": name, "template": text} for name, text in templates.items()]
    elif templates:
        (config["chat_template"],) = templates.values()
    return config


def _templates(metadata: Fields) -> Iterator[tuple[str, str]]:
    key = "tokenizer.chat_template"
    for name in metadata:
        if name == key or name.startswith(f"{key}."):
            yield name.removeprefix(key).removeprefix(".") or "default", metadata.text(name)


_ENDS: Final = frozenset(
    (
        *("<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>"),
        *("<EOT>", "_<EOT>", "<|END_OF_TURN_TOKEN|>", "<|return|>", "<|call|>", "<end_of_utterance>"),
    )
)
"""Control tokens that end an answer, which many files do not declare: those by which llama.cpp stops, too."""


def _stop_ids(vocabulary: _Vocabulary) -> list[int]:
    declared = {vocabulary.id_of(role) for role in ("eos", "eot", "eom")} - {None}
    known = {
        number
        for number, (text, kind) in enumerate(zip(vocabulary.tokens, vocabulary.kinds, strict=True))
        if kind == CONTROL and text in _ENDS
    }
    return sorted({number for number in declared if number is not None} | known)
