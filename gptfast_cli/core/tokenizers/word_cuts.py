"""Long texts cut between words of their tokenizer, so that the pieces' ids are those of the whole text.

A byte-level tokenizer finds its words from left to right by a regular expression, and merges nothing across them. Where
a word ends before white space, what is behind that white space has no part in it: the expressions in use look no
farther ahead. A piece therefore ends there, with two more such places behind it that were seen too.
"""

import json
import re
from collections.abc import Iterator
from typing import Any, Final

import tokenizers

PIECE_CHARACTERS: Final = 500_000
"""The longest piece."""

_FINDING_WORDS: Final = frozenset({"Sequence", "Split", "ByteLevel", "Digits"})
"""Pre-tokenizers that treat a word alike wherever it stands; others put a space before the first one."""

_BEFORE_SPACE: Final = re.compile(r"\S(?=\s)")
_N_SEEN_BEHIND: Final = 2


def pieces(tokenizer: tokenizers.Tokenizer, text: str) -> Iterator[str]:
    """The pieces of a text, from left to right; one that can be cut nowhere is longer than the others."""
    if not _can_be_cut(tokenizer):
        yield text
        return
    begin = 0
    while len(text) - begin > PIECE_CHARACTERS:
        window = text[begin : begin + PIECE_CHARACTERS]
        word_ends = {end for _, (_, end) in tokenizer.pre_tokenizer.pre_tokenize_str(window)}
        ends = [match.end() for match in _BEFORE_SPACE.finditer(window)][:-_N_SEEN_BEHIND]
        end = next((end for end in reversed(ends) if end in word_ends), None)
        if end is None:
            break
        yield window[:end]
        begin += end
    yield text[begin:]


def _can_be_cut(tokenizer: tokenizers.Tokenizer) -> bool:
    """Whether nothing but words decides about tokens, and no added token reaches over white space."""
    if tokenizer.normalizer is not None or tokenizer.pre_tokenizer is None:
        return False
    added = tokenizer.get_added_tokens_decoder().values()
    if any(token.lstrip or token.rstrip or re.search(r"\s", token.content) for token in added):
        return False
    # the library's pickled state of a pre-tokenizer is its JSON
    return all(_finds_words(each) for each in _parts(json.loads(tokenizer.pre_tokenizer.__getstate__())))


def _parts(pre_tokenizer: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield pre_tokenizer
    for part in pre_tokenizer.get("pretokenizers", ()):
        yield from _parts(part)


def _finds_words(part: dict[str, Any]) -> bool:
    return part["type"] in _FINDING_WORDS and not part.get("add_prefix_space", False)
