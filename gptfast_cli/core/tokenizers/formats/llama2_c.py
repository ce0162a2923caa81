"""llama2.c's tokenizer.bin: the pieces and scores of a SentencePiece model, without its settings.

Format: length of the longest piece as int32, then for each piece a float32 score, an int32 length and the bytes, with a
space in place of SentencePiece's mark. The settings are Llama's: <unk>, BOS and EOS are the first three pieces, <0x00>
and so on are bytes, BPE merges by score, a dummy prefix, no normalization. A SentencePiece model is rebuilt from these.
Source: https://github.com/karpathy/llama2.c, tokenizer.py; sentencepiece_model.proto of SentencePiece.
"""

import re
import struct
from collections.abc import Iterator
from pathlib import Path

from gptfast_cli.core.tokenizers.declarations import Declarations, damaged
from gptfast_cli.core.tokenizers.formats.sentencepiece import SentencePieceVocabulary
from gptfast_cli.core.tokenizers.tokenizer import Vocabulary

_ENTRY = struct.Struct("<fi")  # score, bytes of the piece
_LONGEST = struct.Struct("<i")
_MAX_PIECE_BYTES = 10_000
_RESERVED = ("<unk>", "<s>", "</s>")  # spelled as in Llama's model; the file has line breaks around two of them
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")

_NORMAL, _UNKNOWN, _CONTROL, _BYTE_PIECE = 1, 2, 3, 6  # SentencePiece.Type
_BPE = 2  # TrainerSpec.ModelType


class Llama2C:
    """The format of llama2.c's tokenizer.bin."""

    file_names = ("tokenizer.bin",)
    rank = 50

    def read(self, path: Path, declared: Declarations) -> Vocabulary:
        pieces = list(_pieces(path))
        if len(pieces) <= len(_RESERVED):
            raise damaged(path, f"holds {len(pieces)} pieces, and the first three are reserved")
        has_bytes = any(_BYTE.fullmatch(piece) for piece, _ in pieces)
        try:
            return SentencePieceVocabulary(_model(pieces, has_bytes=has_bytes), declared)
        except (RuntimeError, ValueError) as error:
            raise damaged(path, f"its pieces are no valid tokenizer ({error!s:.100})") from error


def _pieces(path: Path) -> Iterator[tuple[str, float]]:
    content = path.read_bytes()
    if len(content) < _LONGEST.size:
        raise damaged(path, "not a tokenizer of llama2.c, or cut short")
    (longest,) = _LONGEST.unpack_from(content)
    if not 0 < longest <= _MAX_PIECE_BYTES:
        raise damaged(path, f"not a tokenizer of llama2.c: its longest piece cannot have {longest} bytes")
    position = _LONGEST.size
    while position < len(content):
        if position + _ENTRY.size > len(content):
            raise damaged(path, "cut short within a piece")
        score, n_bytes = _ENTRY.unpack_from(content, position)
        position += _ENTRY.size
        if not 0 <= n_bytes <= longest or position + n_bytes > len(content) or not abs(score) < float("inf"):
            raise damaged(path, f"no piece of at most {longest} bytes is at byte {position}, or it is cut short")
        try:
            yield content[position : position + n_bytes].decode(), score
        except UnicodeDecodeError as error:
            raise damaged(path, f"the piece at byte {position} is not UTF-8") from error
        position += n_bytes


def _model(pieces: list[tuple[str, float]], *, has_bytes: bool) -> bytes:
    """The pieces as the bytes of a SentencePiece ModelProto."""
    normalizer = _field(1, b"identity") + _field(3, 1) + _field(4, 0) + _field(5, 1)
    # ids of <unk>, BOS and EOS; no padding: -1 as a protobuf varint
    trainer = _field(3, _BPE) + _field(35, int(has_bytes)) + _field(40, 0) + _field(41, 1) + _field(42, 2)
    trainer += _field(43, 2**64 - 1)
    return b"".join(
        [
            *(_field(1, _piece(number, piece, score)) for number, (piece, score) in enumerate(pieces)),
            _field(2, trainer),
            _field(3, normalizer),
        ]
    )


def _piece(number: int, piece: str, score: float) -> bytes:
    if number < len(_RESERVED):
        piece, kind = _RESERVED[number], _CONTROL if number else _UNKNOWN
    else:
        kind = _BYTE_PIECE if _BYTE.fullmatch(piece) else _NORMAL
    text = piece.replace(" ", "▁").encode()
    return _field(1, text) + b"\x15" + struct.pack("<f", score) + _field(3, kind)


def _field(number: int, value: int | bytes) -> bytes:
    """A field of a protobuf message: a varint, or length-delimited bytes."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    low, rest = value & 0x7F, value >> 7
    return bytes([low | 0x80]) + _varint(rest) if rest else bytes([low])


PLUG = Llama2C()
