"""Added tokens in a text: it is split at them before a library that does not know them encodes the rest.

Matching is that of the `tokenizers` library, tokenizers/src/tokenizer/added_vocabulary.rs: the longest token at a
position, with the flags of `Matching`.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator
from typing import Final

from gptfast_cli.core.tokenizers.declarations import AddedToken

# White_Space of Unicode, which Python's \s exceeds by four control characters
_WHITE: Final = (
    "\t\n\v\f\r \x85\xa0\u1680" + "".join(map(chr, range(0x2000, 0x200B))) + "\u2028\u2029\u202f\u205f\u3000"
)
_SPACES: Final = re.compile(f"[{_WHITE}]*")
_IN_WORDS: Final = frozenset({"Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc", "Me", "Nd", "Nl", "Pc"})
_JOINERS: Final = "\u200c\u200d"
_CIRCLED: Final = re.compile("[\u24b6-\u24e9\U0001f130-\U0001f149\U0001f150-\U0001f169\U0001f170-\U0001f189]")


class AddedTokenSplitter:
    """Splits a text at added tokens: first at those without the flag `normalized`, then at the others."""

    def __init__(self, tokens: Iterable[AddedToken]) -> None:
        tokens = tuple(tokens)
        self._first = _Tokens(token for token in tokens if not token.matching.normalized)
        self._then = _Tokens(token for token in tokens if token.matching.normalized)

    def split(self, text: str) -> Iterator[str | int]:
        """Parts of the text in order: ids of tokens, and non-empty texts between them."""
        for part in self._first.split(text):
            if isinstance(part, int):
                yield part
            else:
                yield from self._then.split(part)


class _Tokens:
    """Tokens that are matched together."""

    def __init__(self, tokens: Iterable[AddedToken]) -> None:
        self._tokens = {token.content: token for token in tokens if token.content}
        longest_first = sorted(self._tokens, key=len, reverse=True)
        self._expression = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    def split(self, text: str) -> Iterator[str | int]:
        begin = 0  # of the rest
        for match in self._expression.finditer(text):
            token, (start, end) = self._tokens[match[0]], match.span()
            if token.matching.single_word and (
                _is_in_word(text[start - 1 : start]) or _is_in_word(text[end : end + 1])
            ):
                continue
            if token.matching.lstrip:
                start = begin + len(text[begin:start].rstrip(_WHITE))
            if begin < start:
                yield text[begin:start]
            yield token.id
            begin = _end_of_spaces(text, end) if token.matching.rstrip else end
        if begin < len(text):
            yield text[begin:]


def _end_of_spaces(text: str, begin: int) -> int:
    match = _SPACES.match(text, begin)
    return begin if match is None else match.end()


def _is_in_word(character: str) -> bool:
    r"""Whether a character matches Rust's \w; False for the empty string."""
    if not character:
        return False
    return (
        unicodedata.category(character) in _IN_WORDS or character in _JOINERS or _CIRCLED.match(character) is not None
    )
