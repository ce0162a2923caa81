"""SentencePiece's own format, tokenizer.model: the pieces of Llama 1 and 2, Mistral and what descends from them.

The library finds the pieces of plain text. What lies around it is here: tokens that tokenizer_config.json adds on top
of the trained pieces, and special tokens written out in a text, neither of which the library knows.
Source: https://github.com/google/sentencepiece, src/sentencepiece_processor.cc.
"""

import codecs
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path

from sentencepiece import SentencePieceProcessor

from gptfast_cli.core.tokenizers.declarations import AddedToken, Declarations, damaged
from gptfast_cli.core.tokenizers.limits import MAX_GROWTH, longest_replacement
from gptfast_cli.core.tokenizers.tokenizer import Definition, StreamDecoder, Vocabulary
from gptfast_cli.core.tokenizers.written_out import WrittenOut

# normalizer_spec { add_dummy_prefix: false } as protobuf writes it; appended to a model, it overrides the model's own
_NO_DUMMY_PREFIX = b"\x1a\x02\x18\x00"
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_NORMALIZED_TOGETHER = 32  # characters that the first one may be normalised with, and more
_ABSENT = -1  # the id of BOS or EOS where the model was trained without one


class SentencePieceVocabulary:
    """The vocabulary of a tokenizer.model and of the tokens added to it.

    Raises RuntimeError if the library cannot read the model, ValueError if a piece is not what it says.
    """

    adds_bos = None

    def __init__(self, model: bytes, declared: Declarations) -> None:
        self._pieces = _processor(model)
        _check_pieces(self._pieces)
        _check_rules(_rules(model))
        self._pieces_inside = _processor(model + _NO_DUMMY_PREFIX)
        self._legacy = declared.legacy
        self._is_llama = declared.is_llama
        n_pieces = self._pieces.vocab_size()
        ids = ((self._piece_id(text), text, matching) for text, matching in declared.named.items())
        named = [AddedToken(i, text, special=True, matching=matching) for i, text, matching in ids if i is not None]
        declared_tokens = {token.id: token for token in (*named, *declared.added)}
        self._added = {token_id: token for token_id, token in declared_tokens.items() if self._is_ours(token)}
        reserved = (i for i in range(n_pieces) if self._pieces.is_control(i) or self._pieces.is_unknown(i))
        own = (AddedToken(i, self._pieces.id_to_piece(i), special=True) for i in reserved if i not in declared_tokens)
        self._matched = {token.id: token for token in own} | declared_tokens
        if not declared.is_llama:  # transformers' class for Llama alone heeds `normalized`
            raw = {i: replace(token.matching, normalized=False) for i, token in self._matched.items()}
            self._matched = {i: replace(token, matching=raw[i]) for i, token in self._matched.items()}
        self._atoms = {token.content: token.id for token in self._matched.values()}
        self._written_out = WrittenOut(self._matched.values())
        self.vocab_size = 1 + max([n_pieces - 1, *self._added])
        self.own_bos_id = None if self._pieces.bos_id() == _ABSENT else self._pieces.bos_id()
        self.own_stop_ids = frozenset({self._pieces.eos_id()} - {_ABSENT})

    @property
    def added_tokens(self) -> Mapping[str, int]:
        return self._atoms

    def definition(self) -> Definition:
        pieces, ids = self._pieces, list(range(self._pieces.vocab_size()))
        added = self._matched
        tokens = dict(enumerate(pieces.id_to_piece(ids))) | {token.id: token.content for token in added.values()}
        special = frozenset(token.id for token in added.values() if token.special)
        kinds = [pieces.is_control(ids), pieces.is_unknown(ids), pieces.is_byte(ids), pieces.is_unused(ids)]
        rules = {"score": pieces.get_score(ids), "kind": list(zip(*kinds, strict=True))}
        rules |= _rules(pieces.serialized_model_proto())
        rules["added token"] = [asdict(added[token_id]) for token_id in sorted(added)]
        return Definition("SentencePiece", tokens, special, rules)

    def id_of(self, token: str) -> int | None:
        return self._atoms[token] if token in self._atoms else self._piece_id(token)

    def token_of(self, token_id: int) -> str | None:
        if (added := self._added.get(token_id)) is not None:
            return added.content
        return str(self._pieces.id_to_piece(token_id)) if 0 <= token_id < self._pieces.vocab_size() else None

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for n, part in enumerate(self._written_out.split(text)):
            if isinstance(part, int):
                ids.append(part)
            else:
                ids += (self._pieces if self._is_led(part, is_first=n == 0) else self._pieces_inside).encode(part)
        return ids

    def stream(self) -> StreamDecoder:
        return SentencePieceStream(self._pieces, self._added)

    def _piece_id(self, piece: str) -> int | None:
        token_id: int = self._pieces.piece_to_id(piece)  # that of <unk> where there is no such piece
        return token_id if self._pieces.id_to_piece(token_id) == piece else None

    def _is_led(self, part: str, *, is_first: bool) -> bool:
        """Whether the dummy space is put before a part of a text, of which special tokens are the borders."""
        if self._legacy and not self._is_llama:  # Meta's and Mistral's own code, which encodes each part by itself
            return True
        if not self._legacy and not is_first:
            return False
        # after normalisation, which may strip spaces, and makes many a character into one
        return not str(self._pieces_inside.normalize(part[:_NORMALIZED_TOGETHER])).startswith("▁")

    def _is_ours(self, token: AddedToken) -> bool:
        """Whether the library would not treat this token as it should: it lacks it, or takes it for plain text."""
        if token.id >= self._pieces.vocab_size() or self._pieces.id_to_piece(token.id) != token.content:
            return True
        return token.special and not self._pieces.is_unknown(token.id)


class SentencePieceStream:
    """SentencePiece's decoding, token by token.

    It differs between tokens in three ways: a byte piece is a byte of UTF-8, where each ill-formed byte is one
    U+FFFD; the first piece of a text loses its leading space; <unk> is " ⁇ ".
    """

    def __init__(self, pieces: SentencePieceProcessor, added: Mapping[int, AddedToken]) -> None:
        self._pieces = pieces
        self._added = added
        self._n_pieces = pieces.vocab_size()
        self._bytes = b""  # the beginning of a character
        self._has_begun = False

    def push(self, token_id: int) -> str:
        if (added := self._added.get(token_id)) is not None:
            text = "" if added.special else added.content
            self._has_begun |= text != ""
            return self._characters(final=True) + text
        if not 0 <= token_id < self._n_pieces:
            return ""
        if self._pieces.is_byte(token_id):
            self._has_begun = True
            self._bytes += bytes.fromhex(self._pieces.id_to_piece(token_id)[3:5])  # <0xE2>
            return self._characters(final=False)
        return self._characters(final=True) + self._piece(token_id)

    def finish(self) -> str:
        return self._characters(final=True)

    def _characters(self, *, final: bool) -> str:
        text = ""
        while self._bytes:
            try:
                characters, n_used = codecs.utf_8_decode(self._bytes, "strict", final)
            except UnicodeDecodeError:  # always of the first byte: what stood here before was well begun
                text, self._bytes = text + "\ufffd", self._bytes[1:]
            else:
                text, self._bytes = text + characters, self._bytes[n_used:]
                break
        return text

    def _piece(self, token_id: int) -> str:
        if self._has_begun:
            if self._pieces.is_control(token_id) or self._pieces.is_unknown(token_id):
                return str(self._pieces.decode([token_id]))
            return str(self._pieces.id_to_piece(token_id)).replace("▁", " ")
        # which spaces go is the model's own setting, so the library says: a token whose double has no text is either
        # a control token or a space of which any number is stripped, and after it the text is still to begin
        self._has_begun = self._pieces.decode([token_id, token_id]) != ""
        return str(self._pieces.decode([token_id]))


def _check_pieces(pieces: SentencePieceProcessor) -> None:
    """Raise ValueError if a piece is no text, or one that stands for a byte does not say which."""
    ids = list(range(pieces.vocab_size()))
    for piece, is_byte in zip(pieces.id_to_piece(ids), pieces.is_byte(ids), strict=True):
        if is_byte and not _BYTE.fullmatch(piece):
            raise ValueError(f"piece {piece!r:.60} stands for no byte")


_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3  # fields of a ModelProto, and of what is in them: sentencepiece_model.proto
_CHARACTER_MAP = "character map"
_RULES: dict[int, dict[int, tuple[str, int | bytes]]] = {  # with their defaults
    _TRAINER: {3: ("type", 1), 24: ("space as suffix", 0), 35: ("byte fallback", 0)},
    _NORMALIZER: {2: (_CHARACTER_MAP, b""), 3: ("leading space", 1), 4: ("space removal", 1), 5: ("space mark", 1)},
}


def _rules(model: bytes) -> dict[str, int | bytes]:
    """What a model says about plain text beside its pieces, by name; raises ValueError if it is no model."""
    said = dict(rule for rules in _RULES.values() for rule in rules.values())
    for number, message in _fields(model):
        if isinstance(message, bytes) and number in _RULES:
            rules = _RULES[number]
            said |= {rules[n][0]: value for n, value in _fields(message) if n in rules}
    return said


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a protobuf message in the order in which they stand, of which the last of one number counts."""
    at, end = 0, len(message)
    short_piece = _PIECES << 3 | 2
    while at < end:
        # pieces are many, and nobody asks for them here
        while at + 1 < end and message[at] == short_piece and message[at + 1] < 0x80:  # one byte
            at += 2 + message[at + 1]
        if at >= end:
            break
        key, at = _varint(message, at)
        value: int | bytes
        if key & 7 == 0:
            value, at = _varint(message, at)
        else:
            n_bytes, at = _varint(message, at) if key & 7 == 2 else ({1: 8, 5: 4}.get(key & 7, end), at)
            value, at = message[at : at + n_bytes], at + n_bytes
        yield key >> 3, value


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """A number of at most 64 bits, 7 in each byte, the lowest first, and where what follows it begins."""
    value = 0
    for shift, byte in enumerate(message[at : at + 10]):
        value |= (byte & 0x7F) << 7 * shift
        if byte < 0x80:  # the last byte lacks the highest bit
            return value, at + shift + 1
    raise ValueError("no protobuf message")


def _check_rules(rules: Mapping[str, int | bytes]) -> None:
    """Raise ValueError if a text could become endlessly long."""
    character_map = rules[_CHARACTER_MAP]
    if isinstance(character_map, bytes) and longest_replacement(character_map) > MAX_GROWTH:
        raise ValueError(f"a character may become more than {MAX_GROWTH} others")


def _processor(model: bytes) -> SentencePieceProcessor:
    processor = SentencePieceProcessor()
    processor.LoadFromSerializedProto(model)
    return processor


class SentencePiece:
    """The format of tokenizer.model."""

    file_names = ("tokenizer.model", *(f"tokenizer.model.v{n}" for n in (1, 2, 3, 7)))  # Mistral's own, by version
    rank = 20

    def read(self, path: Path, declared: Declarations) -> Vocabulary:
        try:
            return SentencePieceVocabulary(path.read_bytes(), declared)
        except (RuntimeError, ValueError) as error:
            raise damaged(path, "not a SentencePiece model, or cut short") from error


PLUG = SentencePiece()
