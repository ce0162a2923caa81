"""Calls into the `tokenizers` library, with its errors and output contained, and long texts split between words.

A byte-level tokenizer finds words from left to right by a regular expression, and merges nothing across them. The
expressions in use look ahead no farther than the white space after a word, so a text can be split there; two more such
positions after the split are inspected too.

Time and memory of the library grow with the text, to many seconds and gigabytes for ten million characters, without a
way to interrupt it. Its regular expressions (Oniguruma) may take far longer; after ten million retries in a match the
library panics, which is no Exception in Python.
"""

import contextlib
import gc
import json
import os
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from time import thread_time
from typing import Any, Final, TypeVar

import tokenizers

from gptfast_cli.core.errors import UsageError

PIECE_CHARACTERS: Final = 500_000
"""The longest piece of a text that is split."""

_FINDING_WORDS: Final = frozenset({"Sequence", "Split", "ByteLevel", "Digits"})
"""Pre-tokenizers that treat words independently of their position; others add a space before the first one."""

_BEFORE_SPACE: Final = re.compile(r"\S(?=\s)")
_N_SEEN_BEHIND: Final = 2


def pieces(tokenizer: tokenizers.Tokenizer, text: str, max_characters: int = PIECE_CHARACTERS) -> Iterator[str]:
    """Split a text; a piece without a possible split is longer than `max_characters`."""
    if not _can_be_split(tokenizer):
        yield text
        return
    begin = 0
    while len(text) - begin > max_characters:
        window = text[begin : begin + max_characters]
        word_ends = {end for _, (_, end) in tokenizer.pre_tokenizer.pre_tokenize_str(window)}
        ends = [match.end() for match in _BEFORE_SPACE.finditer(window)][:-_N_SEEN_BEHIND]
        end = next((end for end in reversed(ends) if end in word_ends), None)
        if end is None:
            break
        yield window[:end]
        begin += end
    yield text[begin:]


def _can_be_split(tokenizer: tokenizers.Tokenizer) -> bool:
    """Whether words are tokenized independently, and no added token contains white space."""
    if tokenizer.normalizer is not None or tokenizer.pre_tokenizer is None:
        return False
    added = tokenizer.get_added_tokens_decoder().values()
    if any(token.lstrip or token.rstrip or re.search(r"\s", token.content) for token in added):
        return False
    # the pickled state of a pre-tokenizer is its JSON
    return all(_finds_words(each) for each in _parts(json.loads(tokenizer.pre_tokenizer.__getstate__())))


def _parts(pre_tokenizer: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield pre_tokenizer
    for part in pre_tokenizer.get("pretokenizers", ()):
        yield from _parts(part)


def _finds_words(part: dict[str, Any]) -> bool:
    return part["type"] in _FINDING_WORDS and not part.get("add_prefix_space", False)


MAX_CHARACTERS = 2_000_000
"""Maximum text length of one call: seconds of work, enough for most evaluations."""

# short runs first: expressions of quadratic or worse cost are found before they take long
_SHORT_RUNS = (8, 11, 16, 23, 32, 45, 64)
_MIDDLE_RUNS = (100, 200, 400, 800, 1600)
_LONG_RUNS = (3200, 6400, 12800)
_CHARACTERS = ("a", "A", " ", "\n", "0", ".")
_RARER_CHARACTERS = ("\t", "\r", "-", "é", "я", "漢", "\u0301", "٣", "🙂")
_SECONDS, _LEAST_SECONDS = 0.25 / _LONG_RUNS[-1], 0.008  # CPU time of this thread per character, and at least

_MAX_PATTERN_CHARACTERS = 10_000
_MAX_OWN_TEXTS = 48
_CLASS = re.compile(r"\\[pPxu]\{[^}]*\}|\\[A-Za-z]|[\\()\[\]{}|?*+^$.]")  # syntax of a pattern, not literals

_STDERR = 2

T = TypeVar("T")


class ExpressionError(Exception):
    """A regular expression takes too many steps, or the library panics."""


def encode(
    tokenizer: tokenizers.Tokenizer,
    text: str,
    *,
    max_characters: int = MAX_CHARACTERS,
    piece_characters: int = PIECE_CHARACTERS,
) -> list[int]:
    """Token ids of a text, without special tokens added; one longer than `max_characters` is split into pieces.

    Raises UsageError if the text is too long and cannot be split, or the vocabulary lacks a token for a part of it.
    """
    if len(text) <= max_characters:
        return _encode(tokenizer, text, max_characters)
    try:
        cut = catch_panic(lambda: list(pieces(tokenizer, text, piece_characters)))
    except ExpressionError as error:
        raise UsageError(f"The model's tokenizer cannot encode this text: {error!s:.200}.") from error
    return [token_id for piece in cut for token_id in _encode(tokenizer, piece, max_characters)]


@contextlib.contextmanager
def gc_disabled() -> Iterator[None]:
    """Disable Python's garbage collector, which may take a tenth of a second at any time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextlib.contextmanager
def stderr_silenced() -> Iterator[None]:
    """Redirect stderr to the null device: the library prints panics even if they are caught."""
    try:
        kept = os.dup(_STDERR)
    except OSError:  # it is closed
        yield
        return
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), _STDERR)
    try:
        yield
    finally:
        os.dup2(kept, _STDERR)
        os.close(kept)


def decode(tokenizer: tokenizers.Tokenizer, ids: list[int]) -> str:
    """The text of tokens. Raises UsageError if the library fails."""
    try:
        return catch_panic(partial(tokenizer.decode, ids))
    except Exception as error:  # the library raises nothing narrower
        raise UsageError(f"The model's tokenizer cannot decode these tokens: {error!s:.200}.") from error


def check_expression(pattern: str) -> None:
    """Try a regular expression on long runs of common characters, and of those in the pattern.

    Raises ExpressionError if it takes too many steps, ValueError if it is invalid.
    """
    if len(pattern) > _MAX_PATTERN_CHARACTERS:
        raise ExpressionError(f"a regular expression of {len(pattern)} characters")
    try:
        words = catch_panic(partial(tokenizers.pre_tokenizers.Split, tokenizers.Regex(pattern), "isolated"))
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"invalid regular expression: {error!s:.200}") from error
    own = _own_texts(pattern)
    # a required literal must be present, or the library does not search; not next to the run, or it matches at once
    end = "!\n" + "".join(own)
    with gc_disabled():
        for n in (*_SHORT_RUNS, *_MIDDLE_RUNS):
            for text in (*_CHARACTERS, *_RARER_CHARACTERS, *own):
                _try(words, (text * n)[:n] + end)
            for text in _CHARACTERS:
                _try(words, text * n + "!")
        for n in _LONG_RUNS:
            for text in _CHARACTERS:
                _try(words, text * n + "!")


def _own_texts(pattern: str) -> list[str]:
    """Literal characters and words of a pattern, without duplicates."""
    texts = _CLASS.sub(" ", pattern)
    words = [word[:8] for word in re.findall(r"\w+", texts)]
    own = dict.fromkeys([*words, *"".join(texts.split())])
    return [text for text in own if text not in _CHARACTERS][:_MAX_OWN_TEXTS]


def _try(words: tokenizers.pre_tokenizers.PreTokenizer, text: str) -> None:
    limit = max(_LEAST_SECONDS, _SECONDS * len(text))
    if all(_seconds(partial(words.pre_tokenize_str, text)) > limit for _ in range(2)):  # twice, because of noise
        raise ExpressionError(f"a regular expression takes more than {limit:.2g} s for {len(text)} characters")


def _encode(tokenizer: tokenizers.Tokenizer, text: str, max_characters: int) -> list[int]:
    if len(text) > max_characters:
        raise UsageError(
            f"The text has {len(text)} characters, and the model's tokenizer.json takes at most {max_characters}.",
            "Use a shorter text, or put the model's tokenizer.model beside it, which takes any length.",
        )
    try:
        return catch_panic(partial(tokenizer.encode, text, add_special_tokens=False)).ids
    except Exception as error:  # the library raises nothing narrower
        raise UsageError(f"The model's tokenizer cannot encode this text: {error!s:.200}.") from error


def _seconds(call: Callable[[], object]) -> float:
    start = thread_time()
    catch_panic(call)
    return thread_time() - start


def catch_panic(call: Callable[[], T]) -> T:
    """Call a function of the library. Raises ExpressionError if it panics."""
    try:
        return call()
    except BaseException as error:
        if type(error).__name__ == "PanicException":  # a class of Rust's bridge, which cannot be imported
            raise ExpressionError(str(error)) from error
        raise
