"""Streams that give, token by token, what the decoders of the `tokenizers` library give for a whole sequence.

The library's decoders take all tokens at once. Each one that models in use carry has a stream here that gives the
same text; any other is waited for, so that its text is late but never wrong.
Source: https://github.com/huggingface/tokenizers, tokenizers/src/decoders.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gptfast_cli.core.tokenizers.tokenizer import ByteStream, StreamDecoder, unspelled

TokenOf = Callable[[int], str | None]  # a token as written in the vocabulary; None where it has no text


def json_stream(
    decoder: Mapping[str, Any] | None, *, token_of: TokenOf, decode: Callable[[list[int]], str]
) -> StreamDecoder:
    """A stream for the `decoder` of a tokenizer.json; `decode` is the library's, for a decoder that has no stream."""
    match decoder:
        case None:
            return PieceStream(token_of, first=str, later=" {}".format)
        case {"type": "ByteLevel"}:
            return ByteStream(lambda token_id: unspelled(token_of(token_id) or ""))
        case {"type": "Metaspace", "replacement": str(mark), "prepend_scheme": str(scheme)}:
            opening = " " if scheme == "never" else ""
            return PieceStream(
                token_of, first=lambda token: token.replace(mark, opening), later=lambda token: token.replace(mark, " ")
            )
        case {"type": "Sequence", "decoders": [step]}:
            return json_stream(step, token_of=token_of, decode=decode)
        case {"type": "Sequence", "decoders": [*steps]} if (chain := _chain(steps)) is not None:
            return ChainStream(token_of, chain)
    return WholeStream(decode)


class PieceStream:
    """Tokens that are text on their own, of which only the first is treated differently."""

    def __init__(self, token_of: TokenOf, *, first: Callable[[str], str], later: Callable[[str], str]) -> None:
        self._token_of = token_of
        self._text_of = first
        self._text_of_later = later

    def push(self, token_id: int) -> str:
        token = self._token_of(token_id)
        if token is None:
            return ""
        text = self._text_of(token)
        self._text_of = self._text_of_later
        return text

    def finish(self) -> str:
        return ""


@dataclass(frozen=True, slots=True)
class Chain:
    """The steps of a rewritten SentencePiece decoder: replace in each token, join bytes, strip the joined text."""

    replacements: tuple[tuple[str, str], ...]
    byte_fallback: bool
    strip: str  # the character to strip from the beginning of the text
    n_strip: int  # and how many of it at most


class ChainStream:
    """A stream of a Chain.

    This decoder takes a run of byte tokens as one: a single ill-formed byte turns the whole run, all its good
    characters too, into U+FFFD. So a run waits until another token ends it.
    """

    def __init__(self, token_of: TokenOf, chain: Chain) -> None:
        self._token_of = token_of
        self._chain = chain
        self._n_strip = chain.n_strip
        self._run = bytearray()

    def push(self, token_id: int) -> str:
        token = self._token_of(token_id)
        if token is None:
            return ""
        for old, new in self._chain.replacements:
            token = token.replace(old, new)
        if self._chain.byte_fallback and (byte := _BYTE_TOKEN.fullmatch(token)):
            self._run.append(int(byte[1], 16))
            return ""
        return self._stripped(self._end_of_run() + token)

    def finish(self) -> str:
        return self._stripped(self._end_of_run())

    def _end_of_run(self) -> str:
        run, self._run = self._run, bytearray()
        try:
            return run.decode()
        except UnicodeDecodeError:
            return "\ufffd" * len(run)

    def _stripped(self, text: str) -> str:
        while self._n_strip and text:
            if not text.startswith(self._chain.strip):
                self._n_strip = 0
                break
            text = text[len(self._chain.strip) :]
            self._n_strip -= 1
        return text


class WholeStream:
    """A decoder that is only known for whole sequences: all text comes at the end."""

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self._decode = decode
        self._ids: list[int] = []
        self._n_finished = 0  # of these, the ids whose text was given

    def push(self, token_id: int) -> str:
        self._ids.append(token_id)
        return ""

    def finish(self) -> str:
        before, self._n_finished = self._ids[: self._n_finished], len(self._ids)
        text, text_before = self._decode(self._ids), self._decode(before)
        # a text that changes, or ends within a character, has no border: the later tokens then stand alone
        if text.startswith(text_before) and not text_before.endswith("\ufffd"):
            return text[len(text_before) :]
        return self._decode(self._ids[len(before) :])


_BYTE_TOKEN = re.compile("<0x([0-9A-Fa-f]{2})>")
_CHAIN = re.compile("(Replace )*(ByteFallback )?(Fuse (Strip )?)?")


def _chain(steps: Sequence[Mapping[str, Any]]) -> Chain | None:
    """The steps of a Sequence decoder as a Chain, or None if they are others, or in another order."""
    if not _CHAIN.fullmatch("".join(f"{step['type']} " for step in steps)):
        return None
    replacements = []
    strip, n_strip, byte_fallback = " ", 0, False
    for step in steps:
        match step:
            case {"type": "Replace", "pattern": {"String": str(old)}, "content": str(new)}:
                replacements.append((old, new))
            case {"type": "Strip", "content": str(strip), "start": int(n_strip), "stop": 0}:
                pass
            case {"type": "ByteFallback"}:
                byte_fallback = True
            case {"type": "Fuse"}:
                pass
            case _:  # a pattern that is a regular expression, or a strip at the end of the text
                return None
    return Chain(tuple(replacements), byte_fallback, strip, n_strip)
