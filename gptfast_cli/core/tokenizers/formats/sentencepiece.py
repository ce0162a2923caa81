"""SentencePiece's format, tokenizer.model: Llama 1 and 2, Mistral and derived models.

The library encodes plain text. Added here: tokens that tokenizer_config.json adds to the trained pieces, and special
tokens written out in a text, which the library does not know.
Source: https://github.com/google/sentencepiece, src/sentencepiece_processor.cc.
"""

import codecs
import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from sentencepiece import SentencePieceProcessor

from gptfast_cli.core.tokenizers.added_tokens import AddedTokenSplitter
from gptfast_cli.core.tokenizers.declarations import AddedToken, Declarations, damaged
from gptfast_cli.core.tokenizers.limits import MAX_GROWTH, max_replacement_bytes
from gptfast_cli.core.tokenizers.tokenizer import Definition, StreamDecoder, Vocabulary

# protobuf of normalizer_spec { add_dummy_prefix: false }; appended to a model, it overrides the model's own
_NO_DUMMY_PREFIX = b"\x1a\x02\x18\x00"
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_NORMALIZED_TOGETHER = 32  # upper bound of characters that are normalized together
_ABSENT = -1  # id of BOS or EOS in a model without one


class SentencePieceVocabulary:
    """The vocabulary of a tokenizer.model and its added tokens.

    Raises RuntimeError if the library cannot read the model, ValueError for a malformed piece.
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
        if not declared.is_llama:  # only transformers' Llama class respects `normalized`
            raw = {i: replace(token.matching, normalized=False) for i, token in self._matched.items()}
            self._matched = {i: replace(token, matching=raw[i]) for i, token in self._matched.items()}
        self._atoms = {token.content: token.id for token in self._matched.values()}
        self._splitter = AddedTokenSplitter(self._matched.values())
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
        for n, part in enumerate(self._splitter.split(text)):
            if isinstance(part, int):
                ids.append(part)
            else:
                ids += (self._pieces if self._is_led(part, is_first=n == 0) else self._pieces_inside).encode(part)
        return ids

    def stream(self) -> StreamDecoder:
        return SentencePieceStream(self._pieces, self._added)

    def _piece_id(self, piece: str) -> int | None:
        token_id: int = self._pieces.piece_to_id(piece)  # of <unk> for an unknown piece
        return token_id if self._pieces.id_to_piece(token_id) == piece else None

    def _is_led(self, part: str, *, is_first: bool) -> bool:
        """Whether the dummy prefix is added to a part of a text between special tokens."""
        if self._legacy and not self._is_llama:  # as Meta's and Mistral's code, which encodes each part separately
            return True
        if not self._legacy and not is_first:
            return False
        # after normalization, which may strip or create spaces
        return not str(self._pieces_inside.normalize(part[:_NORMALIZED_TOGETHER])).startswith("▁")

    def _is_ours(self, token: AddedToken) -> bool:
        """Whether the library lacks this token, or treats it as plain text."""
        if token.id >= self._pieces.vocab_size() or self._pieces.id_to_piece(token.id) != token.content:
            return True
        return token.special and not self._pieces.is_unknown(token.id)


class SentencePieceStream:
    """Incremental SentencePiece decoding.

    A byte piece is a byte of UTF-8, each ill-formed byte one U+FFFD; the first piece of a text loses its leading space;
    <unk> is " ⁇ ".
    """

    def __init__(self, pieces: SentencePieceProcessor, added: Mapping[int, AddedToken]) -> None:
        self._pieces = pieces
        self._added = added
        self._n_pieces = pieces.vocab_size()
        self._bytes = b""  # of an incomplete character
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
            except UnicodeDecodeError:  # always at the first byte: the earlier ones were a valid prefix
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
        # which leading spaces are stripped is a setting of the model: if the token twice has no text, it is a control
        # token or a stripped space, and the text has not begun yet
        self._has_begun = self._pieces.decode([token_id, token_id]) != ""
        return str(self._pieces.decode([token_id]))


def _check_pieces(pieces: SentencePieceProcessor) -> None:
    """Raise ValueError if a piece is not valid UTF-8, or a byte piece is malformed."""
    ids = list(range(pieces.vocab_size()))
    for piece, is_byte in zip(pieces.id_to_piece(ids), pieces.is_byte(ids), strict=True):
        if is_byte and not _BYTE.fullmatch(piece):
            raise ValueError(f"piece {piece!r:.60} is no byte")


_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3  # field numbers of ModelProto: sentencepiece_model.proto
_CHARACTER_MAP = "character map"
_RULES: dict[int, dict[int, tuple[str, int | bytes]]] = {  # with their defaults
    _TRAINER: {3: ("type", 1), 24: ("space as suffix", 0), 35: ("byte fallback", 0)},
    _NORMALIZER: {2: (_CHARACTER_MAP, b""), 3: ("leading space", 1), 4: ("space removal", 1), 5: ("space mark", 1)},
}


def _rules(model: bytes) -> dict[str, int | bytes]:
    """Encoding rules of a model by name, without its pieces. Raises ValueError if it is no model."""
    found = dict(rule for rules in _RULES.values() for rule in rules.values())
    for number, message in _fields(model):
        if isinstance(message, bytes) and number in _RULES:
            rules = _RULES[number]
            found |= {rules[n][0]: value for n, value in _fields(message) if n in rules}
    return found


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(number, value) of the fields of a protobuf message, in order; of equal numbers the last counts."""
    at, end = 0, len(message)
    short_piece = _PIECES << 3 | 2
    while at < end:
        # skip pieces quickly: there are many
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
    """A protobuf varint (7 bits per byte, lowest first), and the position after it."""
    value = 0
    for shift, byte in enumerate(message[at : at + 10]):
        value |= (byte & 0x7F) << 7 * shift
        if byte < 0x80:  # the last byte lacks the highest bit
            return value, at + shift + 1
    raise ValueError("no protobuf message")


def _check_rules(rules: Mapping[str, int | bytes]) -> None:
    """Raise ValueError if normalization may lengthen a text beyond MAX_GROWTH."""
    character_map = rules[_CHARACTER_MAP]
    if isinstance(character_map, bytes) and max_replacement_bytes(character_map) > MAX_GROWTH:
        raise ValueError(f"a character may become more than {MAX_GROWTH} others")


def _processor(model: bytes) -> SentencePieceProcessor:
    processor = SentencePieceProcessor()
    processor.LoadFromSerializedProto(model)
    return processor


NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""SentencePiece.Type."""
_BPE = 2  # TrainerSpec.ModelType


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of a model: its text with SentencePiece's mark for a space, score and type."""

    text: str
    score: float
    kind: int


def build_model(
    pieces: Iterable[Piece],
    *,
    bos: str = "<s>",
    eos: str = "</s>",
    dummy_prefix: bool = True,
    removes_spaces: bool = False,
    character_map: bytes = b"",
) -> bytes:
    """A model that merges by score, as the bytes of a ModelProto, for formats that hold its pieces alone."""
    pieces = list(pieces)
    normalizer = _field(1, b"identity") + _field(3, int(dummy_prefix)) + _field(4, int(removes_spaces)) + _field(5, 1)
    if character_map:
        normalizer += _field(2, character_map)
    unknown = next((piece.text for piece in pieces if piece.kind == UNKNOWN), "<unk>")
    trainer = _field(3, _BPE) + _field(35, int(any(piece.kind == BYTE for piece in pieces)))
    trainer += b"".join(_field(45 + at, text.encode()) for at, text in enumerate((unknown, bos, eos)))
    return b"".join([*(_field(1, _piece(piece)) for piece in pieces), _field(2, trainer), _field(3, normalizer)])


def _piece(piece: Piece) -> bytes:
    return _field(1, piece.text.encode()) + b"\x15" + struct.pack("<f", piece.score) + _field(3, piece.kind)


def _field(number: int, value: int | bytes) -> bytes:
    """A field of a protobuf message: a varint, or length-delimited bytes."""
    if isinstance(value, int):
        return _as_varint(number << 3) + _as_varint(value)
    return _as_varint(number << 3 | 2) + _as_varint(len(value)) + value


def _as_varint(value: int) -> bytes:
    low, rest = value & 0x7F, value >> 7
    return bytes([low | 0x80]) + _as_varint(rest) if rest else bytes([low])


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
