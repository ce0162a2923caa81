"""The special tokens that a chat template may name, such as bos_token, as transformers hands them to it.

They are texts, where the rest of gptfast has ids, and more than the usual roles: a model may have an image_token.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gptfast_cli.core.fields import read_fields
from gptfast_cli.core.tokenizers.declarations import SPECIAL_TOKENS_MAP, TOKENIZER_CONFIG


def read_variables(folder: Path) -> dict[str, str]:
    """The texts of a folder's special tokens by role; a role that no file declares is not there.

    special_tokens_map.json has the last word in older folders, and none where tokenizer_config.json lists the added
    tokens itself (transformers' PreTrainedTokenizerBase._from_pretrained). Raises CorruptError where one of the two
    is no JSON object.
    """
    declared = _values(folder / TOKENIZER_CONFIG)
    if "added_tokens_decoder" not in declared:
        declared |= _values(folder / SPECIAL_TOKENS_MAP)
    return dict(_roles(declared)) | dict(_own_roles(declared))


def _values(file: Path) -> dict[str, Any]:
    return dict(read_fields(file).values) if file.is_file() else {}


def _roles(declared: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in declared.items():
        if name.endswith("_token"):
            yield from _token(name, value)


def _own_roles(declared: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Roles of the model's own, in a map; where the same key holds a list, its tokens have no role."""
    own = declared.get("extra_special_tokens") or declared.get("additional_special_tokens")
    if isinstance(own, Mapping):
        for name, value in own.items():
            yield from _token(name, value)


def _token(name: str, value: object) -> Iterator[tuple[str, str]]:
    match value:
        case str(text) | {"content": str(text)}:
            yield name, text
