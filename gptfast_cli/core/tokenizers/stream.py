"""Text from tokens that come one at a time, such that what was shown never has to be taken back.

A token may end in the middle of a character: a byte-fallback piece is one byte of UTF-8, and a byte-level token can
stop after two of the three bytes of "€". Such bytes wait inside the stream until the character is whole, or until
it is certain that it never will be and U+FFFD stands for them.
"""

import codecs
from collections.abc import Callable
from typing import Protocol


class StreamDecoder(Protocol):
    """The text of one sequence of tokens, as it grows; a stream is used for one sequence only.

    The strings of all pushes and of the final `finish`, joined, are the text of the whole sequence. A push costs the
    same however long the sequence has become. Tokens pushed after a `finish`, as an answer's after those of its prompt,
    go on with the text, but complete no character that an earlier token began.
    """

    def push(self, token_id: int) -> str:
        """The characters that this token makes final, often none.

        Special tokens have no text, and neither has an id that the vocabulary lacks: a model's output layer is often
        padded beyond it, and a draw from the padding must not end a generation.
        """
        ...

    def finish(self) -> str:
        """The rest, where no token follows: what waited for its character, as U+FFFD where it stayed incomplete."""
        ...


class ByteStream:
    """Text of tokens that are strings of bytes; each maximal ill-formed part becomes one U+FFFD.

    That is the substitution which the Unicode standard recommends (section 3.9) and which Python's codec and Rust's
    `from_utf8_lossy` both make.
    """

    def __init__(self, bytes_of: Callable[[int], bytes]) -> None:
        self._bytes_of = bytes_of
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        """See StreamDecoder."""
        return self._utf8.decode(self._bytes_of(token_id))

    def finish(self) -> str:
        """See StreamDecoder."""
        return self._utf8.decode(b"", final=True)
