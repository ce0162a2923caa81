"""Calls into the `tokenizers` library: errors and output contained, long texts cut between words.

A byte-level tokenizer finds its words from left to right by a regular expression, and merges nothing across them. Where
a word ends before white space, what is behind that white space has no part in it: the expressions in use look no
farther ahead. A piece therefore ends there, with two more such places behind it that were seen too.

Its time and memory grow with the text, to many seconds and gigabytes for ten million characters, and nothing interrupts
it. Its regular expressions (Oniguruma) may take far longer; after ten million retries in one match they give up, and
then the library panics, which is no Exception in Python.
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


MAX_CHARACTERS = 2_000_000
"""The longest text that the library is given at once: seconds of work, and as much as most evaluations read."""

# short runs first: an expression whose steps grow with the square of a run or faster is found before it takes long
_SHORT_RUNS = (8, 11, 16, 23, 32, 45, 64)
_MIDDLE_RUNS = (100, 200, 400, 800, 1600)
_LONG_RUNS = (3200, 6400, 12800)
_CHARACTERS = ("a", "A", " ", "\n", "0", ".")
_RARER_CHARACTERS = ("\t", "\r", "-", "é", "я", "漢", "\u0301", "٣", "🙂")
_SECONDS, _LEAST_SECONDS = 0.25 / _LONG_RUNS[-1], 0.008  # for each character, of this thread's own time

_MAX_PATTERN_CHARACTERS = 10_000
_MAX_OWN_TEXTS = 48
_CLASS = re.compile(r"\\[pPxu]\{[^}]*\}|\\[A-Za-z]|[\\()\[\]{}|?*+^$.]")  # of a pattern, what is no letter of its own

_STDERR = 2

T = TypeVar("T")


class ExpressionError(Exception):
    """A regular expression takes too many steps, or the library gives up in another way."""


def encode(tokenizer: tokenizers.Tokenizer, text: str) -> list[int]:
    """The ids of a text without anything added to it.

    Raises UsageError if the text is too long and cannot be cut, or the vocabulary lacks a token for something in it.
    """
    if len(text) <= MAX_CHARACTERS:
        return _encode(tokenizer, text)
    try:
        cut = unpanicked(lambda: list(pieces(tokenizer, text)))
    except ExpressionError as error:
        raise UsageError(f"The model's tokenizer cannot encode this text: {error!s:.200}.") from error
    return [token_id for piece in cut for token_id in _encode(tokenizer, piece)]


@contextlib.contextmanager
def without_collector() -> Iterator[None]:
    """Let the block run without Python's garbage collector, which may take a tenth of a second at any time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Let the block write nothing to stderr, where the library prints a panic although it is caught."""
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
    """The text of tokens; raises UsageError if the library cannot tell."""
    try:
        return unpanicked(partial(tokenizer.decode, ids))
    except Exception as error:  # the library raises nothing narrower
        raise UsageError(f"The model's tokenizer cannot decode these tokens: {error!s:.200}.") from error


def check_expression(pattern: str) -> None:
    """Cut runs of characters into words by a regular expression, as a trial.

    The runs are of usual characters, and of those that stand in the pattern. Raises ExpressionError if it takes too
    many steps, and ValueError where it is none.
    """
    if len(pattern) > _MAX_PATTERN_CHARACTERS:
        raise ExpressionError(f"a regular expression of {len(pattern)} characters")
    try:
        words = unpanicked(partial(tokenizers.pre_tokenizers.Split, tokenizers.Regex(pattern), "isolated"))
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"no regular expression: {error!s:.200}") from error
    own = _own_texts(pattern)
    # without what a match needs somewhere the library gives up before it searches; next to the run it would be found
    end = "!\n" + "".join(own)
    with without_collector():
        for n in (*_SHORT_RUNS, *_MIDDLE_RUNS):
            for text in (*_CHARACTERS, *_RARER_CHARACTERS, *own):
                _try(words, (text * n)[:n] + end)
            for text in _CHARACTERS:
                _try(words, text * n + "!")
        for n in _LONG_RUNS:
            for text in _CHARACTERS:
                _try(words, text * n + "!")


def _own_texts(pattern: str) -> list[str]:
    """Letters and words that stand in a pattern, each once."""
    texts = _CLASS.sub(" ", pattern)
    words = [word[:8] for word in re.findall(r"\w+", texts)]
    own = dict.fromkeys([*words, *"".join(texts.split())])
    return [text for text in own if text not in _CHARACTERS][:_MAX_OWN_TEXTS]


def _try(words: tokenizers.pre_tokenizers.PreTokenizer, text: str) -> None:
    limit = max(_LEAST_SECONDS, _SECONDS * len(text))
    if all(_seconds(partial(words.pre_tokenize_str, text)) > limit for _ in range(2)):  # one may have been disturbed
        raise ExpressionError(f"a regular expression takes more than {limit:.2g} s for {len(text)} characters")


def _encode(tokenizer: tokenizers.Tokenizer, text: str) -> list[int]:
    if len(text) > MAX_CHARACTERS:
        raise UsageError(
            f"The text has {len(text)} characters, and this model's tokenizer takes {MAX_CHARACTERS} at once.",
            "Give a shorter text, or the model's tokenizer.model beside it, which takes any length.",
        )
    try:
        return unpanicked(partial(tokenizer.encode, text, add_special_tokens=False)).ids
    except Exception as error:  # the library raises nothing narrower
        raise UsageError(f"The model's tokenizer cannot encode this text: {error!s:.200}.") from error


def _seconds(call: Callable[[], object]) -> float:
    start = thread_time()
    unpanicked(call)
    return thread_time() - start


def unpanicked(call: Callable[[], T]) -> T:
    """What a call returns; raises ExpressionError if the library panics, which is no Exception in Python."""
    try:
        return call()
    except BaseException as error:
        if type(error).__name__ == "PanicException":  # a class of Rust's bridge, which cannot be imported
            raise ExpressionError(str(error)) from error
        raise
