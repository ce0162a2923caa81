"""Limits on time and memory of an untrusted tokenizer.json, checked before the library loads it.

Normalizer, pre-tokenizer, post-processor and decoder are chains of steps. Steps may multiply the length of a text:
twenty that double it make it a million times as long. Regular expressions may take exponential time. The library cannot
be interrupted. All tokenizers in use are within the limits.
"""

import base64
import binascii
import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from gptfast_cli.core.tokenizers import library

MAX_STEPS = 64
"""Maximum steps of a chain; at most twelve in use."""

MAX_GROWTH = 64
"""Maximum factor by which a chain lengthens a text, or a post-processor a list of tokens."""

MAX_PIECE_CHARACTERS = 1024
"""Maximum length of what is looked up at every position of a text."""

_MAX_PATTERNS = 16
_CHAINS = {
    "normalizer": "normalizers",
    "pre_tokenizer": "pretokenizers",
    "post_processor": "processors",
    "decoder": "decoders",
}


def check_limits(file: object) -> None:
    """Raise ValueError if a tokenizer.json exceeds the limits, ExpressionError for a slow regular expression.

    The file may still be malformed otherwise.
    """
    if not isinstance(file, dict):
        raise ValueError("no JSON object")
    patterns = dict.fromkeys(pattern for name in _CHAINS for pattern in _checked_chain(file, name))
    if len(patterns) > _MAX_PATTERNS:
        raise ValueError(f"it has more than {_MAX_PATTERNS} regular expressions")
    for pattern in patterns:
        library.check_expression(pattern)
    _check_model(file.get("model"))


def max_replacement_bytes(character_map: bytes) -> int:
    """Bytes of the longest replacement in a SentencePiece character map.

    Format: length of a trie as 4 bytes little-endian, the trie, and the replacements, zero-terminated.
    """
    texts = character_map[4 + int.from_bytes(character_map[:4], "little") :]
    return max(map(len, texts.split(b"\0")), default=0)


def _checked_chain(file: Mapping[str, Any], name: str) -> Iterator[str]:
    """The regular expressions of a chain. Raises ValueError if it exceeds the limits."""
    growth = 1
    for n_steps, step in enumerate(_steps(file.get(name), _CHAINS[name]), 1):
        growth *= _growth(step)
        if n_steps > MAX_STEPS or growth > MAX_GROWTH:
            raise ValueError(f"its {name} has over {MAX_STEPS} steps, or makes a text over {MAX_GROWTH} times longer")
        if (pattern := _pattern(step, "Regex")) is not None:
            yield pattern


def _steps(component: object, key: str) -> Iterator[Mapping[str, Any]]:
    """The steps of a component, including nested sequences."""
    waiting = [component]
    while waiting:
        step = waiting.pop()
        if isinstance(step, dict):
            inner = step.get(key)
            if isinstance(inner, list):
                waiting += reversed(inner)
            else:
                yield step


def _growth(step: Mapping[str, Any]) -> int:
    """Maximum factor by which a step lengthens a text."""
    growth = 1
    match step:
        case {"type": "Replace", "content": str(content)}:
            # a regular expression may match the empty string between any two characters
            pattern = _pattern(step, "String")
            growth = -(-len(content) // len(pattern)) if pattern else 1 + len(content)
        case {"type": "Prepend", "prepend": str(content)}:
            growth = -(-len(content) // MAX_PIECE_CHARACTERS)
        case {"type": "Precompiled", "precompiled_charsmap": str(encoded)}:
            with contextlib.suppress(binascii.Error):  # the library refuses it
                growth = max_replacement_bytes(base64.b64decode(encoded))
        case {"type": "TemplateProcessing", "single": [*pieces]}:
            growth = sum(isinstance(piece, dict) and "Sequence" in piece for piece in pieces) + len(pieces) // MAX_STEPS
    return max(1, growth)


def _pattern(step: Mapping[str, Any], kind: str) -> str | None:
    pattern = step.get("pattern")
    text = pattern.get(kind) if isinstance(pattern, dict) else None
    return text if isinstance(text, str) else None


def _check_model(model: object) -> None:
    """Raise ValueError if the model looks up too much at every position of a text."""
    match model:
        case {"vocab": [*pieces]}:  # a unigram model tries every length of a piece
            longest = max((len(each[0]) for each in pieces if isinstance(each, list) and _is_piece(each)), default=0)
        case {"max_input_chars_per_word": int(longest)}:
            pass
        case {"continuing_subword_prefix": prefix, "end_of_word_suffix": suffix}:
            longest = max(len(text) if isinstance(text, str) else 0 for text in (prefix, suffix))
        case _:
            longest = 0
    if longest > MAX_PIECE_CHARACTERS:
        raise ValueError(f"its model looks up pieces of {longest} characters")


def _is_piece(entry: list[Any]) -> bool:
    return bool(entry) and isinstance(entry[0], str)
