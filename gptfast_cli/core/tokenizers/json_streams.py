"""Incremental equivalents of the decoders of the `tokenizers` library, which decode whole sequences only.

The decoders of models in use have a stream here that returns the same text; for any other the text comes at the end of
the sequence.
Source: https://github.com/huggingface/tokenizers, tokenizers/src/decoders.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gptfast_cli.core.tokenizers.tokenizer import ByteStream, StreamDecoder, unspelled

TokenOf = Callable[[int], str | None]  # the spelling of a token in the vocabulary; None if it has no text


def json_stream(
    decoder: Mapping[str, Any] | None, *, token_of: TokenOf, decode: Callable[[list[int]], str]
) -> StreamDecoder:
    """A stream for the `decoder` of a tokenizer.json; `decode`: of the library, for unknown decoders."""
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
    """Stream of tokens that map to text independently, except that the first is treated differently."""

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
    """Steps of a converted SentencePiece decoder: replace in each token, fuse bytes, strip the fused text."""

    replacements: tuple[tuple[str, str], ...]
    byte_fallback: bool
    strip: str  # the character to strip from the beginning of the text
    n_strip: int  # and how many of it at most


class ChainStream:
    """A stream of a Chain.

    The library decodes a run of byte tokens as one: a single ill-formed byte turns the whole run into U+FFFD. So bytes
    are buffered until another token ends the run.
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
    """Stream of an unknown decoder: all text comes at the end."""

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self._decode = decode
        self._ids: list[int] = []
        self._n_finished = 0  # ids whose text was returned

    def push(self, token_id: int) -> str:
        self._ids.append(token_id)
        return ""

    def finish(self) -> str:
        before, self._n_finished = self._ids[: self._n_finished], len(self._ids)
        text, text_before = self._decode(self._ids), self._decode(before)
        # if the earlier text changes, or ends within a character, the later tokens are decoded alone
        if text.startswith(text_before) and not text_before.endswith("\ufffd"):
            return text[len(text_before) :]
        return self._decode(self._ids[len(before) :])


_BYTE_TOKEN = re.compile("<0x([0-9A-Fa-f]{2})>")
_CHAIN = re.compile("(Replace )*(ByteFallback )?(Fuse (Strip )?)?")


def _chain(steps: Sequence[Mapping[str, Any]]) -> Chain | None:
    """The steps of a Sequence decoder as a Chain; None for other steps, or another order."""
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
