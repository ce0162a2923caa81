"""tiktoken files, base64 tokens with ranks, as used by Meta's Llama 3.

Meta's code splits long texts before tokenization; since no token spans a split, the split positions affect the ids and
are reproduced here.

The file contains neither the pre-tokenization pattern nor the special tokens: both are Llama 3's, and 256 special
tokens follow the ranks. Names are those of Llama 3.1 to 3.3 (Llama 3 has reserved tokens for <|eom_id|> and
<|python_tag|>); names listed in tokenizer_config.json take precedence.
Source: https://github.com/meta-llama/llama-models, models/llama3/tokenizer.py, and tokenizer.json of Llama 3.1.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from gptfast_cli.core.tokenizers.byte_ranks import ByteRanks, ByteRankVocabulary, decode_base64
from gptfast_cli.core.tokenizers.declarations import AddedToken, Declarations, damaged
from gptfast_cli.core.tokenizers.tokenizer import Vocabulary

MAX_CHARACTERS = 400_000
"""Maximum length of a piece."""

MAX_RUN = 25_000
"""Maximum run of whitespace, or of other characters, in a piece."""

# complete runs, then the start of a run that is too long; possessive quantifiers prevent backtracking
_PIECE = re.compile(
    rf"(?:\S{{1,{MAX_RUN}}}+(?!\S)|\s{{1,{MAX_RUN}}}+(?!\s))*+(?:\S{{{MAX_RUN}}}|\s{{{MAX_RUN}}})?", re.DOTALL
)


def pieces(text: str) -> Iterator[str]:
    """Split a text as Meta's code does."""
    for start in range(0, len(text), MAX_CHARACTERS):
        yield from filter(None, _PIECE.findall(text[start : start + MAX_CHARACTERS]))


_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

_N_SPECIAL = 256
_BOS = "<|begin_of_text|>"
_STOPS = frozenset({"<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"})
_NAMED = {
    0: _BOS,
    1: "<|end_of_text|>",
    4: "<|finetune_right_pad_id|>",
    6: "<|start_header_id|>",
    7: "<|end_header_id|>",
    8: "<|eom_id|>",
    9: "<|eot_id|>",
    10: "<|python_tag|>",
}


class Tiktoken:
    """The format of Llama 3's tokenizer.model."""

    file_names = ("tokenizer.model",)
    rank = 30

    def read(self, path: Path, declared: Declarations) -> Vocabulary:
        tokens = _tokens(path)
        beyond = [token_id for token_id in declared.bos_ids if token_id > len(tokens)]
        if beyond:
            raise damaged(path, f"{len(tokens)} ranks, but the model's BOS is {beyond[0]}: the file is cut short")
        ranks = ByteRanks(
            tokens=tokens,
            first_id=0,
            pattern=_PATTERN,
            special=_special(len(tokens)),
            bos=_BOS,
            stops=_STOPS,
            pieces=pieces,
        )
        try:
            return ByteRankVocabulary(ranks, declared)
        except ValueError as error:
            raise damaged(path, f"not a tiktoken file ({error})") from error


def _tokens(path: Path) -> Sequence[bytes]:
    """Tokens by rank. Raises CorruptError for a malformed line, and duplicate or missing ranks."""
    token_of_rank: dict[int, bytes] = {}
    for n, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            token, rank = line.split()
            token_of_rank[int(rank)] = decode_base64(token)
        except ValueError as error:
            raise damaged(path, f"not a tiktoken file (line {n}: {line!r:.60})") from error
        if len(token_of_rank) < n:
            raise damaged(path, f"not a tiktoken file (line {n}: duplicate rank {int(rank)})")
    if not all(rank in token_of_rank for rank in range(len(token_of_rank))):
        raise damaged(path, f"not a tiktoken file (ranks are not 0 to {len(token_of_rank) - 1})")
    return [token_of_rank[rank] for rank in range(len(token_of_rank))]


def _special(first_id: int) -> list[AddedToken]:
    others = (place for place in range(_N_SPECIAL) if place not in _NAMED)
    names = _NAMED | {place: f"<|reserved_special_token_{n}|>" for n, place in enumerate(others)}
    return [AddedToken(first_id + place, names[place], special=True) for place in range(_N_SPECIAL)]


PLUG = Tiktoken()
