"""What the JSON files beside a tokenizer say about its special tokens, before a vocabulary turns texts into ids.

Hugging Face spreads this over five files that overlap: tokenizer_config.json, special_tokens_map.json and
added_tokens.json name tokens by their text, generation_config.json and config.json by their ids.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptfast_cli.core.errors import CorruptError

MODEL_CONFIG = "config.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
SPECIAL_TOKENS_MAP = "special_tokens_map.json"
ADDED_TOKENS = "added_tokens.json"
GENERATION_CONFIG = "generation_config.json"

_LARGEST_ID = 2**31 - 1
_ID = re.compile(r"[0-9]{1,9}")
_MAX_FILE_BYTES = 32_000_000  # those in use have up to 5 million

ROLES = frozenset({"bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token"})


@dataclass(frozen=True, slots=True)
class AddedToken:
    """A token put on top of a trained vocabulary, matched in a text as a whole; a special one has no text itself."""

    id: int
    content: str
    special: bool


@dataclass(frozen=True, slots=True)
class Declarations:
    """What the files of one folder declare.

    roles:    token texts by role, one of ROLES; None where a file says that there is none
    extra:    texts of further special tokens
    added:    tokens on top of the vocabulary, by ascending id
    add_bos:  whether a text begins with BOS; None where no file says
    bos_ids:  BOS by id, the most specific file first
    stop_ids: every id that a file calls an end of sequence
    """

    roles: Mapping[str, str | None]
    extra: frozenset[str]
    added: tuple[AddedToken, ...]
    add_bos: bool | None
    bos_ids: tuple[int, ...]
    stop_ids: frozenset[int]

    @property
    def special_texts(self) -> frozenset[str]:
        """Texts of all special tokens that are named."""
        return self.extra | {text for text in self.roles.values() if text}


def read_declarations(folder: Path) -> Declarations:
    """Read what the folder's JSON files declare; a file that is not there declares nothing.

    Raises CorruptError where a file is no JSON object or a token in it is neither text nor id.
    """
    named = [folder / SPECIAL_TOKENS_MAP, folder / TOKENIZER_CONFIG]  # the later one has the last word
    by_id = [folder / GENERATION_CONFIG, folder / MODEL_CONFIG]
    add_bos = _object(folder / TOKENIZER_CONFIG).get("add_bos_token")
    return Declarations(
        roles={role: text for path in named for role, text in _roles(path)},
        extra=frozenset(text for path in named for text in _extra(path)),
        added=tuple(sorted(_added(folder), key=lambda token: token.id)),
        add_bos=add_bos if isinstance(add_bos, bool) else None,
        bos_ids=tuple(token_id for path in by_id for token_id in _ids(path, "bos_token_id")),
        stop_ids=frozenset(token_id for path in by_id for token_id in _ids(path, "eos_token_id")),
    )


def damaged(path: Path, why: str) -> CorruptError:
    """The error for a tokenizer's file that cannot be used."""
    hint = "Download the model again, or convert it with the tokenizer of another: `--tokenizer-from MODEL`."
    return CorruptError(f"{path}: {why}", hint)


def _object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    if path.stat().st_size > _MAX_FILE_BYTES:
        raise damaged(path, f"larger than any such file ({path.stat().st_size / 1e6:.0f} MB)")
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise damaged(path, f"not valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise damaged(path, "not a JSON object")
    return content


def _roles(path: Path) -> Iterable[tuple[str, str | None]]:
    content = _object(path)
    for role in ROLES & content.keys():
        value = content[role]
        yield role, None if value is None else _text(path, value)


def _extra(path: Path) -> Iterable[str]:
    for key in ("extra_special_tokens", "additional_special_tokens"):  # the newer name and the older
        match _object(path).get(key):
            case None:
                pass
            case [*tokens]:
                yield from (_text(path, token) for token in tokens)
            case dict(tokens):  # by a role of the model's own, such as image_token
                yield from (_text(path, token) for token in tokens.values())
            case _:
                raise damaged(path, f"{key} is neither a list nor a JSON object")


def _text(path: Path, value: object) -> str:
    match value:
        case str(content) | {"content": str(content)}:
            return content
    raise damaged(path, f"{value!r:.60} is no token")


def _added(folder: Path) -> Iterable[AddedToken]:
    path = folder / TOKENIZER_CONFIG
    match _object(path).get("added_tokens_decoder"):
        case None:  # files of before 2023 have the plain map from text to id instead
            path = folder / ADDED_TOKENS
            for content, token_id in _object(path).items():
                yield _added_token(path, token_id, {"content": content})
        case dict(decoder):
            for token_id, fields in decoder.items():
                yield _added_token(path, token_id, fields)
        case _:
            raise damaged(path, "added_tokens_decoder is not a JSON object")


def _added_token(path: Path, token_id: object, fields: object) -> AddedToken:
    match fields:
        case {"content": str(content), **flags} if content and _ID.fullmatch(str(token_id)):
            return AddedToken(int(str(token_id)), content, flags.get("special") is True)
    raise damaged(path, f"added token {token_id!r:.60} is malformed")


def _ids(path: Path, key: str) -> tuple[int, ...]:
    value = _object(path).get(key)
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(token_id) is int and token_id <= _LARGEST_ID for token_id in ids):
        raise damaged(path, f"{key} is {value!r:.60}, neither an id nor a list of ids")
    return tuple(token_id for token_id in ids if token_id >= 0)  # some files write -1 for none
