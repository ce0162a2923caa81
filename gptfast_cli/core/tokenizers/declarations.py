"""Special tokens as declared by the JSON files beside a tokenizer.

Hugging Face has five overlapping files: tokenizer_config.json, special_tokens_map.json and added_tokens.json declare
tokens by their text, generation_config.json and config.json by their ids.
"""

import json
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from gptfast_cli.core.errors import CorruptError
from gptfast_cli.core.quantities import size

MODEL_CONFIG = "config.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
SPECIAL_TOKENS_MAP = "special_tokens_map.json"
ADDED_TOKENS = "added_tokens.json"
GENERATION_CONFIG = "generation_config.json"

_LARGEST_ID = 2**31 - 1
_ID = re.compile(r"[0-9]{1,9}")
_MAX_FILE_BYTES = 32_000_000  # the largest in use: 5 million

ROLES = frozenset({"bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token"})


@dataclass(frozen=True, slots=True)
class Matching:
    """How an added token is matched in a text: flags of Hugging Face's AddedToken.

    lstrip, rstrip: includes white space before or after it
    single_word:    does not match inside of a word
    normalized:     matches in the normalized text, after all tokens without this flag
    """

    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = False


@dataclass(frozen=True, slots=True)
class AddedToken:
    """A token added to a trained vocabulary, matched before tokenization; special tokens have no text when decoded."""

    id: int
    content: str
    special: bool
    matching: Matching = Matching()


@dataclass(frozen=True, slots=True)
class Declarations:
    """Declarations of one folder.

    roles:       token texts by role, one of ROLES; None if declared as null
    named:       all special tokens declared by text, with or without a role
    added:       added tokens, by ascending id
    lists_added: tokenizer_config.json lists them, which then replace those of a tokenizer.json
    is_llama:    tokenizer_class is transformers' LlamaTokenizer, with special rules for SentencePiece models
    legacy:      SentencePiece adds its dummy prefix to every text between special tokens, else only to the first;
                 null is false
    add_bos:     whether BOS is added; None if not declared
    add_eos:     the same for EOS
    bos_ids:     BOS by id, the most specific file first
    stop_ids:    all declared end-of-sequence ids
    """

    roles: Mapping[str, str | None]
    named: Mapping[str, Matching]
    added: tuple[AddedToken, ...]
    lists_added: bool
    is_llama: bool
    legacy: bool
    add_bos: bool | None
    add_eos: bool | None
    bos_ids: tuple[int, ...]
    stop_ids: frozenset[int]


def read_declarations(folder: Path) -> Declarations:
    """Read the declarations of a folder; all files are optional.

    The older special_tokens_map.json and added_tokens.json are ignored if tokenizer_config.json lists the added tokens;
    otherwise special_tokens_map.json takes precedence (transformers, PreTrainedTokenizerBase._from_pretrained).

    Raises CorruptError if a file is not a JSON object, or a token in it is malformed.
    """
    file = folder / TOKENIZER_CONFIG
    config = _object(file)
    lists_added = config.get("added_tokens_decoder") is not None
    older = [] if lists_added else [_read(folder / SPECIAL_TOKENS_MAP)]
    naming = [_File(file, config), *older]  # the later one takes precedence
    by_id = [_read(folder / GENERATION_CONFIG), _read(folder / MODEL_CONFIG)]
    by_role = {role: token for each in naming for role, token in _by_role(each)}
    named = dict(token for each in naming for token in _without_role(each))
    named |= dict(token for token in by_role.values() if token is not None)
    texts = {role: None if token is None else token[0] for role, token in by_role.items()}
    added = _listed(naming[0]) if lists_added else _mapped(_read(folder / ADDED_TOKENS), named.keys())
    with_roles = (replace(each, special=True) if each.content in texts.values() else each for each in added)
    is_llama = str(config.get("tokenizer_class")).removesuffix("Fast") == "LlamaTokenizer"
    return Declarations(
        roles={role: text for role, text in texts.items() if role in ROLES},
        named=named,
        added=tuple(sorted(with_roles, key=lambda token: token.id)),
        lists_added=lists_added,
        is_llama=is_llama,
        legacy=bool(config.get("legacy", not is_llama)),
        add_bos=_flag(config, "add_bos_token"),
        add_eos=_flag(config, "add_eos_token"),
        bos_ids=tuple(token_id for each in by_id for token_id in _ids(each, "bos_token_id")),
        stop_ids=frozenset(token_id for each in by_id for token_id in _ids(each, "eos_token_id")),
    )


def damaged(path: Path, why: str) -> CorruptError:
    """The error for an unusable tokenizer file."""
    hint = "Download the model again, or convert it with the tokenizer of another: `--tokenizer-from MODEL`."
    return CorruptError(f"{path}: {why}", hint)


@dataclass(frozen=True, slots=True)
class _File:
    path: Path
    content: Mapping[str, Any]


def _read(path: Path) -> _File:
    return _File(path, _object(path))


def _object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    if path.stat().st_size > _MAX_FILE_BYTES:
        raise damaged(path, f"larger than any such file ({size(path.stat().st_size)})")
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise damaged(path, f"not valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise damaged(path, "not a JSON object")
    return content


def _flag(config: Mapping[str, Any], key: str) -> bool | None:
    return config[key] if isinstance(config.get(key), bool) else None


_Named: TypeAlias = tuple[str, Matching]


def _by_role(file: _File) -> Iterator[tuple[str, _Named | None]]:
    """Tokens by role; a model may have roles of its own, such as image_token."""
    for role, value in file.content.items():
        if role in ROLES:
            yield role, None if value is None else _named(file.path, value)
        elif role.endswith("_token"):
            match value:
                case str() | {"content": str()}:
                    yield role, _named(file.path, value)


def _without_role(file: _File) -> Iterator[_Named]:
    for key in ("extra_special_tokens", "additional_special_tokens"):  # the newer name and the older
        match file.content.get(key):
            case None:
                pass
            case [*tokens]:
                yield from (_named(file.path, token) for token in tokens)
            case dict(tokens):  # by the model's own roles
                yield from (_named(file.path, token) for token in tokens.values())
            case _:
                raise damaged(file.path, f"{key} is neither a list nor a JSON object")


def _named(path: Path, value: object) -> _Named:
    match value:
        case str(content):
            return content, Matching()
        case {"content": str(content), **flags}:
            return content, _matching(flags, special=True)
    raise damaged(path, f"{value!r:.60} is no token")


def _matching(flags: Mapping[Any, Any], *, special: bool) -> Matching:
    is_set = {name: flags.get(name) is True for name in ("lstrip", "rstrip", "single_word")}
    return Matching(**is_set, normalized=flags.get("normalized", not special) is True)  # the library's default


def _listed(file: _File) -> Iterator[AddedToken]:
    """The tokens of an added_tokens_decoder, with their flags."""
    decoder = file.content["added_tokens_decoder"]
    if not isinstance(decoder, dict):
        raise damaged(file.path, "added_tokens_decoder is not a JSON object")
    for token_id, fields in decoder.items():
        match fields:
            case {"content": str(content), **flags} if content and _ID.fullmatch(token_id):
                special = flags.get("special") is True
                yield AddedToken(int(token_id), content, special, _matching(flags, special=special))
            case _:
                raise damaged(file.path, f"added token {token_id!r:.60} is malformed")


def _mapped(file: _File, named: Collection[str]) -> Iterator[AddedToken]:
    """The tokens of an added_tokens.json, a map from text to id; special if another file names them."""
    for content, token_id in file.content.items():
        if not content or not _ID.fullmatch(str(token_id)):
            raise damaged(file.path, f"added token {token_id!r:.60} is malformed")
        special = content in named
        yield AddedToken(int(token_id), content, special, Matching(normalized=not special))


def _ids(file: _File, key: str) -> tuple[int, ...]:
    value = file.content.get(key)
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(token_id) is int and token_id <= _LARGEST_ID for token_id in ids):
        raise damaged(file.path, f"{key} is {value!r:.60}, neither an id nor a list of ids")
    return tuple(token_id for token_id in ids if token_id >= 0)  # some files write -1 for none
