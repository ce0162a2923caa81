"""A tokenizer: its vocabulary, special tokens, encoding, and decoding of a stream of tokens.

Each byte is one printable character: itself where Latin-1 prints it, else the next one from U+0100 on.
Source: https://github.com/openai/gpt-2, src/encoder.py, bytes_to_unicode.

A token may end in the middle of a character: a byte-fallback piece is one byte of UTF-8, and a byte-level token can
stop after two of the three bytes of "€". Such bytes wait inside the stream until the character is whole, or until
it is certain that it never will be and U+FFFD stands for them.

The rules (BOS once, which ids stop a generation) are the same for every format and live in `Tokenizer`.
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
    """A token in the alphabet."""
    return token.decode("latin-1").translate(_CHARACTERS)


def unspelled(token: str) -> bytes:
    """The bytes of a token in the alphabet; one that is written otherwise, as added tokens are, stands for itself."""
    try:
        return bytes(_BYTES[character] for character in token)
    except KeyError:
        return token.encode()


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


@dataclass(frozen=True, slots=True)
class Definition:
    """All that a vocabulary is made of, to be compared with another's.

    format:  of the file, whose rules can be compared with those of the same format
    tokens:  every token by its id, as the `tokenizers` library and SentencePiece write it
    special: ids of tokens without a text
    rules:   what else decides which tokens a text has, by name, such as merges
    """

    format: str
    tokens: Mapping[int, str]
    special: frozenset[int]
    rules: Mapping[str, Any]


class Vocabulary(Protocol):
    """The tokens of one tokenizer file.

    A special token that is written out in a text is that token, in every format, as transformers has it: chat
    templates are written that way, and the same model must not read a prompt differently in its two file formats.
    """

    @property
    def vocab_size(self) -> int:
        """One more than the largest token id; a model's own vocabulary may be larger."""
        ...

    @property
    def own_bos_id(self) -> int | None:
        """The token that this file itself takes for the beginning of a text, if it names one."""
        ...

    @property
    def own_stop_ids(self) -> frozenset[int]:
        """The tokens that this file itself takes for the end of a text."""
        ...

    @property
    def adds_bos(self) -> bool | None:
        """Whether the file says that `own_bos_id` opens every text; None where it leaves that open."""
        ...

    @property
    def added_tokens(self) -> Mapping[str, int]:
        """The ids of the tokens that are matched in a text as a whole, by how they are written.

        Special ones are among them, which have no text when they are decoded.
        """
        ...

    def definition(self) -> Definition:
        """All of it; made when it is asked for, which takes up to a second."""
        ...

    def id_of(self, token: str) -> int | None:
        """The id of a token given as it is written in the vocabulary, or None."""
        ...

    def token_of(self, token_id: int) -> str | None:
        """The token of an id as it is written in the vocabulary, or None."""
        ...

    def encode(self, text: str) -> list[int]:
        """The tokens of well-formed Unicode text, with nothing added at either end."""
        ...

    def stream(self) -> StreamDecoder:
        """A new stream, at the beginning of a text."""
        ...


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """The resolved ids; a checkpoint's manifest keeps them, so that they are never guessed a second time.

    bos_id:   beginning of sequence, None where the model has none
    add_bos:  whether the model was trained on texts that begin with it
    stop_ids: tokens that end a generation
    """

    bos_id: int | None
    add_bos: bool
    stop_ids: frozenset[int]


def resolve(declared: Declarations, vocabulary: Vocabulary | None) -> SpecialTokens:
    """The special tokens of a folder; without a vocabulary only what is declared by id.

    Stop ids are united: a chat model often declares `<|eot_id|>` in generation_config.json alone and
    `<|end_of_text|>` in config.json alone, and either ends its answer. BOS is the declared token, else the
    vocabulary's own, else the declared id. Whether it is added: a tokenizer.json says so itself, in its
    post-processor; for the others `add_bos_token` counts, and without it BOS is added, as Llama was trained.
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
    if "bos_token" in declared.roles:  # also where it is null: then the ids in config.json are left-overs
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
    n_embeddings: int | None = None  # rows of the model's embedding; None where ids are not fed to a model
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
        """The token ids of `text`, led by BOS where the model expects one, and by exactly one.

        Each of them has a row in the model's embedding.

        A text that already begins with BOS, written out as chat templates do, gets no second one. Special tokens
        written out in the text become those tokens. With `bos=False` nothing is added.

        Raises UsageError where the text is not well-formed Unicode, TokenIdError where the model lacks a token.
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
        """The text of a sequence, without its special tokens; ids outside of the vocabulary have no text.

        There is one way from ids to text: this is a stream, run to its end.
        """
        stream = self.stream()
        return "".join([*map(stream.push, ids), stream.finish()])

    def stream(self, after: Iterable[int] = ()) -> StreamDecoder:
        """A decoder for tokens that come one at a time, at the beginning of a text or after those of a prompt.

        After a prompt the first word keeps the space that it would lose at the beginning of a text; a character that
        the prompt left incomplete stays the prompt's.
        """
        stream = self.vocabulary.stream()
        for token_id in after:
            stream.push(token_id)
        stream.finish()
        return stream
