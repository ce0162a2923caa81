"""The `tokenizers` library, held within bounds of time and memory, and its failures as errors of our own.

Its time and memory grow with the text, to many seconds and gigabytes for ten million characters, and nothing interrupts
it. Its regular expressions (Oniguruma) may take far longer; after ten million retries in one match they give up, and
then the library panics, which is no Exception in Python.
"""

from collections.abc import Callable
from functools import partial
from time import thread_time
from typing import TypeVar

import tokenizers

from gptfast_cli.core.errors import UsageError
from gptfast_cli.core.tokenizers.word_cuts import pieces

MAX_CHARACTERS = 2_000_000
"""The longest text that the library is given at once: seconds of work, and as much as most evaluations read."""

# short runs first: an expression whose steps grow with the square of a run or faster is told before it takes long
_TRIAL_LENGTHS = tuple(100 * 2**n for n in range(8))
_TRIAL_CHARACTERS = ("a", "A", " ", "\n", "0", ".")
_TRIAL_SECONDS = 0.25  # of this thread's own time; those in use need a twentieth of it

T = TypeVar("T")


class ExpressionError(Exception):
    """A regular expression takes too many steps."""


def encode(tokenizer: tokenizers.Tokenizer, text: str) -> list[int]:
    """The ids of a text without anything added to it.

    Raises UsageError where the text is too long and cannot be cut, or the vocabulary lacks a token for something in it.
    """
    if len(text) <= MAX_CHARACTERS:
        return _encode(tokenizer, text)
    return [token_id for piece in pieces(tokenizer, text) for token_id in _encode(tokenizer, piece)]


def check_expressions(tokenizer: tokenizers.Tokenizer) -> None:
    """Cut long runs into words, as a trial; raises ExpressionError where that takes too many steps."""
    words = tokenizer.pre_tokenizer
    if words is None:
        return
    for text in (character * length + "!" for length in _TRIAL_LENGTHS for character in _TRIAL_CHARACTERS):
        # twice, as the interpreter's garbage collection may fall into the first
        if all(_seconds(partial(words.pre_tokenize_str, text)) > _TRIAL_SECONDS for _ in range(2)):
            raise ExpressionError(f"{len(text)} characters took more than {_TRIAL_SECONDS} s")


def _encode(tokenizer: tokenizers.Tokenizer, text: str) -> list[int]:
    if len(text) > MAX_CHARACTERS:
        raise UsageError(
            f"The text has {len(text)} characters, and this model's tokenizer takes {MAX_CHARACTERS} at once.",
            "Give a shorter text, or the model's tokenizer.model beside it, which takes any length.",
        )
    try:
        return _unpanicked(partial(tokenizer.encode, text, add_special_tokens=False)).ids
    except Exception as error:  # the library raises nothing narrower
        raise UsageError(f"The model's tokenizer cannot encode this text: {error!s:.200}.") from error


def _seconds(call: Callable[[], object]) -> float:
    start = thread_time()
    _unpanicked(call)
    return thread_time() - start


def _unpanicked(call: Callable[[], T]) -> T:
    try:
        return call()
    except BaseException as error:
        if type(error).__name__ == "PanicException":  # a class of Rust's bridge, which cannot be imported
            raise ExpressionError(str(error)) from error
        raise
