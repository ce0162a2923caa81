"""Tekken, tekken.json: byte-level BPE of Mistral's models since Mistral NeMo.

Special tokens have the lowest ids, ranks follow; config.default_vocab_size limits the number of ranks used. Files of
the first versions do not list their special tokens.
Source: https://github.com/mistralai/mistral-common, src/mistral_common/tokens/tokenizers/tekken.py.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from gptfast_cli.core.tokenizers.byte_ranks import ByteRanks, ByteRankVocabulary, decode_base64
from gptfast_cli.core.tokenizers.declarations import AddedToken, Declarations, damaged
from gptfast_cli.core.tokenizers.tokenizer import Vocabulary

_BOS, _EOS = "<s>", "</s>"
_MAX_SPECIAL = 100_000

_UNLISTED_VERSIONS = frozenset({"v1", "v2", "v3", "v7"})
_UNLISTED = (
    *("<unk>", _BOS, _EOS, "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"),
    *("[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]"),
    *("[PREFIX]", "[MIDDLE]", "[SUFFIX]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]"),
)


class Tekken:
    """The format of tekken.json."""

    file_names = ("tekken.json",)
    rank = 40

    def read(self, path: Path, declared: Declarations) -> Vocabulary:
        try:
            return ByteRankVocabulary(_ranks(json.loads(path.read_bytes())), declared)
        except (ValueError, RecursionError) as error:
            raise damaged(path, f"not a Tekken file ({error!s:.200})") from error


def _ranks(content: object) -> ByteRanks:
    """Parse a file. Raises ValueError if it is malformed."""
    match content:
        case {
            "config": {
                "pattern": str(pattern),
                "default_vocab_size": int(vocab_size),
                "default_num_special_tokens": int(n_special),
                "version": str(version),
            },
            "vocab": [*entries],
            **others,
        } if 2 < n_special <= min(_MAX_SPECIAL, vocab_size) and vocab_size <= n_special + len(entries):
            return ByteRanks(
                tokens=[_token(rank, entry) for rank, entry in enumerate(entries[: vocab_size - n_special])],
                first_id=n_special,
                pattern=pattern,
                special=_special(others.get("special_tokens"), version, n_special),
                bos=_BOS,
                stops=frozenset({_EOS}),
                pieces=lambda text: [text],  # not split, as in Mistral's code
            )
    raise ValueError("its config or vocabulary is missing, malformed or contradicts itself")


def _token(rank: int, entry: object) -> bytes:
    match entry:
        case {"rank": int(stated), "token_bytes": str(text)} if stated == rank:
            return decode_base64(text)
    raise ValueError(f"rank {rank} is {entry!r:.60}")


def _special(listed: object, version: str, n_special: int) -> Iterable[AddedToken]:
    """All special tokens; unassigned ids are named <SPECIAL_id>."""
    match listed:
        case None if version in _UNLISTED_VERSIONS:
            texts = dict(enumerate(_UNLISTED[:n_special]))
        case [*entries]:
            texts = dict(_special_token(entry) for entry in entries)
            if len(texts) != len(entries):
                raise ValueError("duplicate id of a special token")
        case _:
            raise ValueError(f"special_tokens is {listed!r:.60} in version {version:.20}")
    texts = {token_id: f"<SPECIAL_{token_id}>" for token_id in range(n_special)} | texts
    if len(texts) > n_special or len(set(texts.values())) < n_special:
        raise ValueError(f"special tokens are not {n_special} different ones")
    return [AddedToken(token_id, text, special=True) for token_id, text in texts.items()]


def _special_token(entry: object) -> tuple[int, str]:
    match entry:
        case {"rank": int(token_id), "token_str": str(text)} if text and token_id >= 0:
            return token_id, text
    raise ValueError(f"{entry!r:.60} is no special token")


PLUG = Tekken()
