"""Byte-level BPE by ranks, the vocabulary of tiktoken and Tekken files.

Such a file lists tokens as byte strings, and no merges. Two neighbours can be merged if their concatenation is a token;
the lowest rank first, then from left to right. For the `tokenizers` library, which needs a list of merges, every split
of every token into two tokens becomes a merge, in the order of the ranks.
Source: https://github.com/openai/tiktoken, src/lib.rs.
"""

import base64
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

import tokenizers
from tokenizers import models, pre_tokenizers

from gptfast_cli.core.tokenizers import library
from gptfast_cli.core.tokenizers.added_tokens import AddedTokenSplitter
from gptfast_cli.core.tokenizers.declarations import AddedToken, Declarations
from gptfast_cli.core.tokenizers.tokenizer import ByteStream, Definition, StreamDecoder, spelled

_MAX_TOKENS = 2**20
_MAX_TOKEN_BYTES = 256  # at most 128 in use; the cost grows with the square


@dataclass(frozen=True, slots=True)
class ByteRanks:
    """Contents of a file, or constants of its format.

    tokens:   bytes of each token, by rank
    first_id: id of rank 0
    pattern:  pre-tokenizer: regular expression of words, across which nothing is merged
    special:  special tokens with their ids
    bos:      BOS, one of the special tokens
    stops:    end-of-text tokens among them
    pieces:   splits a long text before pre-tokenization
    """

    tokens: Sequence[bytes]
    first_id: int
    pattern: str
    special: Iterable[AddedToken]
    bos: str
    stops: frozenset[str]
    pieces: Callable[[str], Iterable[str]]


class ByteRankVocabulary:
    """The vocabulary of such a file with the tokens declared beside it."""

    adds_bos = None

    def __init__(self, ranks: ByteRanks, declared: Declarations) -> None:
        """Raises ValueError for an inconsistent vocabulary or an unusable pattern."""
        self._tokens = ranks.tokens
        self._first_id = ranks.first_id
        self._pieces = ranks.pieces
        self._pattern = ranks.pattern
        self._id_of_token = {token: ranks.first_id + rank for rank, token in enumerate(ranks.tokens)}
        _check(ranks.tokens, self._id_of_token)
        self._merging = _merging(ranks.pattern, self._id_of_token)
        self._added = {token.id: token for token in self._all_added(ranks.special, declared)}
        self._id_of_added = {token.content: token.id for token in self._added.values()}
        self._splitter = AddedTokenSplitter(self._added.values())
        self.vocab_size = 1 + max(*self._id_of_token.values(), *self._added)
        self.own_bos_id = self._id_of_added.get(ranks.bos)
        self.own_stop_ids = frozenset(self._id_of_added[stop] for stop in ranks.stops & self._id_of_added.keys())

    @property
    def added_tokens(self) -> Mapping[str, int]:
        return self._id_of_added

    def definition(self) -> Definition:
        plain = {token_id: spelled(token) for token, token_id in self._id_of_token.items()}
        added = {token_id: token.content for token_id, token in self._added.items()}
        special = frozenset(token_id for token_id, token in self._added.items() if token.special)
        rules = {
            "pattern": self._pattern,
            "added token": [asdict(self._added[token_id]) for token_id in sorted(self._added)],
        }
        return Definition("ranks", plain | added, special, rules)

    def id_of(self, token: str) -> int | None:
        added = self._id_of_added.get(token)
        return self._id_of_token.get(token.encode()) if added is None else added

    def token_of(self, token_id: int) -> str | None:
        if (added := self._added.get(token_id)) is not None:
            return added.content
        return self._bytes(token_id).decode(errors="replace") or None

    def encode(self, text: str) -> list[int]:
        """Raises UsageError if the text is too long."""
        ids: list[int] = []
        for part in self._splitter.split(text):
            if isinstance(part, int):
                ids.append(part)
            else:
                for piece in self._pieces(part):
                    ids += library.encode(self._merging, piece)
        return ids

    def stream(self) -> StreamDecoder:
        return ByteStream(self._bytes)

    def _bytes(self, token_id: int) -> bytes:
        if (added := self._added.get(token_id)) is not None:
            return b"" if added.special else added.content.encode()
        rank = token_id - self._first_id
        return self._tokens[rank] if 0 <= rank < len(self._tokens) else b""

    def _all_added(self, special: Iterable[AddedToken], declared: Declarations) -> Iterator[AddedToken]:
        """Added tokens with unique ids; declared tokens replace those of the format."""
        plain = range(self._first_id, self._first_id + len(self._tokens))
        beside = {token.id: token for token in declared.added if token.id not in plain}
        yield from (token for token in special if token.id not in beside)
        for text, matching in declared.named.items():
            if (token_id := self._id_of_token.get(text.encode())) is not None:
                yield AddedToken(token_id, text, special=True, matching=matching)
        yield from beside.values()


def decode_base64(text: str | bytes) -> bytes:
    """The bytes of a base64-encoded token. Raises ValueError."""
    token = base64.b64decode(text, validate=True)
    if not 0 < len(token) <= _MAX_TOKEN_BYTES:
        raise ValueError(f"a token of {len(token)} bytes")
    return token


def _check(tokens: Sequence[bytes], ids: dict[bytes, int]) -> None:
    if len(ids) != len(tokens):
        raise ValueError(f"{len(tokens) - len(ids)} duplicate tokens")
    if len(tokens) > _MAX_TOKENS:
        raise ValueError(f"{len(tokens)} tokens, more than {_MAX_TOKENS}")
    lacking = [byte for byte in range(256) if bytes([byte]) not in ids]
    if lacking:
        raise ValueError(f"no token for the byte {lacking[0]:#04x}")


def _merging(pattern: str, ids: dict[bytes, int]) -> tokenizers.Tokenizer:
    vocab = {spelled(token): token_id for token, token_id in ids.items()}
    merges = [
        (token[:cut], token[cut:])
        for token in vocab
        for cut in range(1, len(token))
        if token[:cut] in vocab and token[cut:] in vocab
    ]
    # ignore_merges: a word that is a token is encoded as that, even if no merges lead to it
    merging = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=True))
    try:
        with library.stderr_silenced():
            library.check_expression(pattern)
    except library.ExpressionError as error:
        raise ValueError(f"its pattern takes too many steps ({error!s:.100})") from error
    words = pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
    merging.pre_tokenizer = pre_tokenizers.Sequence(
        [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    return merging
