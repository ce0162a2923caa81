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
from gptfast_cli.core.tokenizers.formats.sentencepiece import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    Piece,
    SentencePieceVocabulary,
    build_model,
)
from gptfast_cli.core.tokenizers.tokenizer import Vocabulary

_ENTRY = struct.Struct("<fi")  # score, bytes of the piece
_LONGEST = struct.Struct("<i")
_MAX_PIECE_BYTES = 10_000
_RESERVED = ("<unk>", "<s>", "</s>")  # spelled as in Llama's model; the file has line breaks around two of them
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


class Llama2C:
    """The format of llama2.c's tokenizer.bin."""

    file_names = ("tokenizer.bin",)
    rank = 50

    def read(self, path: Path, declared: Declarations) -> Vocabulary:
        pieces = list(_pieces(path))
        if len(pieces) <= len(_RESERVED):
            raise damaged(path, f"holds {len(pieces)} pieces, and the first three are reserved")
        try:
            return SentencePieceVocabulary(build_model(_pieces_of_model(pieces)), declared)
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


def _pieces_of_model(pieces: list[tuple[str, float]]) -> Iterator[Piece]:
    for number, (piece, score) in enumerate(pieces):
        if number < len(_RESERVED):
            yield Piece(_RESERVED[number], score, CONTROL if number else UNKNOWN)
        else:
            yield Piece(piece.replace(" ", "▁"), score, BYTE if _BYTE.fullmatch(piece) else NORMAL)


PLUG = Llama2C()
