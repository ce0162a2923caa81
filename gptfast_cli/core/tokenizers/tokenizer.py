"""Tokenizer: vocabulary protocol, special tokens, encoding, and incremental decoding.

`Tokenizer` holds the rules common to all file formats: BOS is added at most once, and stop ids end a generation.
Decoding is incremental, because a token may end inside a character: a byte-fallback piece is one byte of UTF-8, a
byte-level token may hold two of the three bytes of "€". Incomplete bytes are buffered until the character is
complete, or invalid and replaced by U+FFFD.

Byte-level vocabularies spell each byte as one printable character: itself if printable in Latin-1, else the next one
from U+0100 on (https://github.com/openai/gpt-2, src/encoder.py, bytes_to_unicode).
"""

import codecs
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from gptfast_cli.core.errors import UsageError
from gptfast_cli.core.token_ids import check_token_ids
from gptfast_cli.core.tokenizers.declarations import Declarations

_PRINTABLE = (*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1))
_OTHERS = tuple(byte for byte in range(256) if byte not in _PRINTABLE)
_CHARACTERS = {byte: chr(byte) for byte in _PRINTABLE} | {byte: chr(256 + n) for n, byte in enumerate(_OTHERS)}
_BYTES = {character: byte for byte, character in _CHARACTERS.items()}


def spelled(token: bytes) -> str:
    """The byte-level spelling of a token."""
    return token.decode("latin-1").translate(_CHARACTERS)


def unspelled(token: str) -> bytes:
    """The bytes of a byte-level spelling; any other text (an added token) is its own UTF-8."""
    try:
        return bytes(_BYTES[character] for character in token)
    except KeyError:
        return token.encode()


class StreamDecoder(Protocol):
    """Incremental decoder of one sequence of tokens.

    The concatenation of all `push` results and of the final `finish` is the text of the sequence. The cost of a push
    does not depend on the length of the sequence. Tokens pushed after a `finish` (an answer after its prompt) continue
    the text, but never complete a character that an earlier token began.
    """

    def push(self, token_id: int) -> str:
        """Characters that this token completes, possibly none.

        Special tokens and ids outside the vocabulary have no text: output layers are often padded, and sampling a
        padding id must not fail.
        """
        ...

    def finish(self) -> str:
        """The remaining text; an incomplete character becomes U+FFFD."""
        ...


class ByteStream:
    """Decoder for tokens that are byte strings; each maximal ill-formed part becomes one U+FFFD.

    This is the substitution that the Unicode standard recommends (section 3.9), as in Python's codec and Rust's
    `from_utf8_lossy`.
    """

    def __init__(self, bytes_of: Callable[[int], bytes]) -> None:
        self._bytes_of = bytes_of
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        return self._utf8.decode(self._bytes_of(token_id))

    def finish(self) -> str:
        return self._utf8.decode(b"", final=True)


@dataclass(frozen=True, slots=True)
class Definition:
    """The contents of a vocabulary, for comparison with another.

    format:  file format; rules are comparable within a format
    tokens:  token by id, in the spelling of the `tokenizers` library and SentencePiece
    special: ids of tokens without text
    rules:   whatever else determines the encoding, by name, such as merges
    """

    format: str
    tokens: Mapping[int, str]
    special: frozenset[int]
    rules: Mapping[str, Any]


class Vocabulary(Protocol):
    """The vocabulary of one tokenizer file.

    A special token written out in a text is encoded as that token, in every format, as in transformers: chat templates
    rely on it, and both file formats of a model must encode a prompt equally.
    """

    @property
    def vocab_size(self) -> int:
        """One more than the largest token id; a model's own vocabulary may be larger."""
        ...

    @property
    def own_bos_id(self) -> int | None:
        """BOS id according to this file; None if it has none."""
        ...

    @property
    def own_stop_ids(self) -> frozenset[int]:
        """End-of-sequence tokens according to this file."""
        ...

    @property
    def adds_bos(self) -> bool | None:
        """Whether the file adds `own_bos_id` to every text; None if it does not say."""
        ...

    @property
    def added_tokens(self) -> Mapping[str, int]:
        """Ids of added tokens by their text; they are matched before any other tokenization.

        Includes special tokens, which decode to no text.
        """
        ...

    def definition(self) -> Definition:
        """The contents; computing them takes up to a second."""
        ...

    def id_of(self, token: str) -> int | None:
        """The id of a token by its spelling in the vocabulary, or None."""
        ...

    def token_of(self, token_id: int) -> str | None:
        """The spelling of an id in the vocabulary, or None."""
        ...

    def encode(self, text: str) -> list[int]:
        """Token ids of well-formed Unicode text, without BOS or EOS."""
        ...

    def stream(self) -> StreamDecoder:
        """A new incremental decoder."""
        ...


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """Resolved special tokens, as stored in a checkpoint's manifest.

    bos_id:   beginning of sequence; None if the model has none
    add_bos:  whether `encode` adds it
    stop_ids: tokens that end a generation
    """

    bos_id: int | None
    add_bos: bool
    stop_ids: frozenset[int]


def resolve(declared: Declarations, vocabulary: Vocabulary | None) -> SpecialTokens:
    """The special tokens of a folder; without a vocabulary only those declared by id.

    Stop ids are the union of all declarations: a chat model often declares `<|eot_id|>` in generation_config.json only
    and `<|end_of_text|>` in config.json only, and both end an answer. BOS is the declared token, else the vocabulary's
    own, else the declared id. A tokenizer.json says in its post-processor whether BOS is added; for other formats
    `add_bos_token` decides, and its default is true, as Llama was trained.
    """
    if vocabulary is None:
        return SpecialTokens(bos_id=next(iter(declared.bos_ids), None), add_bos=False, stop_ids=declared.stop_ids)
    bos_id = _bos_id(declared, vocabulary)
    return SpecialTokens(
        bos_id=bos_id,
        add_bos=bos_id is not None and _adds_bos(declared, vocabulary, bos_id),
        stop_ids=declared.stop_ids | _own_stop_ids(declared, vocabulary),
    )


def _bos_id(declared: Declarations, vocabulary: Vocabulary) -> int | None:
    if "bos_token" in declared.roles:  # even if null: it overrides the ids in config.json
        return _role_id(declared, vocabulary, "bos_token")
    if vocabulary.own_bos_id is not None:
        return vocabulary.own_bos_id
    return next(iter(declared.bos_ids), None)


def _own_stop_ids(declared: Declarations, vocabulary: Vocabulary) -> frozenset[int]:
    if "eos_token" not in declared.roles:
        return vocabulary.own_stop_ids
    eos_id = _role_id(declared, vocabulary, "eos_token")
    return frozenset() if eos_id is None else frozenset({eos_id})


def _role_id(declared: Declarations, vocabulary: Vocabulary, role: str) -> int | None:
    text = declared.roles[role]
    return None if text is None else vocabulary.id_of(text)


def _adds_bos(declared: Declarations, vocabulary: Vocabulary, bos_id: int) -> bool:
    if vocabulary.adds_bos is None:
        return declared.add_bos is not False
    return vocabulary.adds_bos and bos_id == vocabulary.own_bos_id


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """Text to token ids and back, for one model; `path` is the file of its vocabulary."""

    vocabulary: Vocabulary
    special: SpecialTokens
    n_embeddings: int | None = None  # rows of the model's embedding; None: ids are not checked
    path: Path | None = None

    @property
    def vocab_size(self) -> int:
        """One more than the largest token id; the model's own vocabulary may be larger."""
        return self.vocabulary.vocab_size

    @property
    def bos_id(self) -> int | None:
        """The token that begins a sequence, whether or not `encode` adds it."""
        return self.special.bos_id

    @property
    def stop_ids(self) -> frozenset[int]:
        """The tokens that end a generation."""
        return self.special.stop_ids

    def encode(self, text: str, *, bos: bool = True) -> list[int]:
        """Token ids of `text`, with one leading BOS if the model expects it and `bos` is true.

        A text that already begins with BOS (as chat templates write it) gets no second one. Special tokens written out
        in the text become those tokens.

        Raises UsageError if the text is not well-formed Unicode, TokenIdError for an id without an embedding row.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UsageError(
                f"The text is not valid Unicode: half a character (a lone surrogate) at position {error.start}.",
                "Save the text as UTF-8 and pass it with --prompt-file.",
            ) from error
        ids = self.vocabulary.encode(text)
        bos_id = self.special.bos_id
        if bos and self.special.add_bos and bos_id is not None and ids[:1] != [bos_id]:
            ids = [bos_id, *ids]
        self.check_ids(ids)
        return ids

    def check_ids(self, ids: Iterable[int]) -> None:
        """Raise TokenIdError for the first id that has no row in the model's embedding."""
        if self.n_embeddings is not None:
            check_token_ids(ids, self.n_embeddings, self.vocabulary.token_of)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of a sequence, by the incremental decoder; special tokens and unknown ids have no text."""
        stream = self.stream()
        return "".join([*map(stream.push, ids), stream.finish()])

    def stream(self, after: Iterable[int] = ()) -> StreamDecoder:
        """An incremental decoder, at the start of a text or after the tokens of a prompt.

        After a prompt the first word keeps the leading space that it would lose at the start of a text.
        """
        stream = self.vocabulary.stream()
        for token_id in after:
            stream.push(token_id)
        stream.finish()
        return stream
