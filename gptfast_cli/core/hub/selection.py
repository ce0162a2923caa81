"""Selection of the files of a repository, and validation of their names.

A name must be valid on every operating system: files downloaded on one may be read on another.
"""

import fnmatch
import re
from collections.abc import Iterable, Sequence
from typing import Final

from gptfast_cli.core.errors import CorruptError

_MOST_BYTES = 255  # of a path component, on nearly every file system
_DRIVE: Final = re.compile(r"[A-Za-z]:")
_WINDOWS_DEVICE: Final = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)
_NOT_IN_WINDOWS: Final = frozenset('<>:"|?*')


def check_file_name(name: str, source: str) -> None:
    """Raise CorruptError if a file name escapes its folder or is invalid on some operating system."""
    reason = _reason(name)
    if reason is not None:
        raise CorruptError(
            f"{source}: contains a file with an unsafe name: {reason}.\n{_shown(name)}",
            "Nothing was written. Leave it out with --exclude, or report it to the owner.",
        )


def is_file_name(name: str) -> bool:
    """Whether a file name is valid on every operating system and stays inside its folder."""
    return _reason(name) is None


def _reason(name: str) -> str | None:
    """Why a name is invalid; None if it is valid."""
    parts = name.replace("\\", "/").split("/")
    reasons = {
        "it is an absolute path": name.startswith(("/", "\\")) or _DRIVE.match(name),
        "it leads out of the folder": ".." in parts,
        "it is not a plain relative path": "\\" in name or any(part in ("", ".") for part in parts),
        "Windows reserves it for a device": any(_WINDOWS_DEVICE.fullmatch(part) for part in parts),
        "it has characters that some operating systems do not allow": any(
            not char.isprintable() or char in _NOT_IN_WINDOWS for char in name
        )
        or any(part.endswith((".", " ")) for part in parts),
        "it is too long": any(len(part.encode(errors="replace")) > _MOST_BYTES for part in parts),
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def _shown(name: str) -> str:
    shown = ascii(name)
    return shown if len(shown) <= 120 else f"{shown[:120]} …"


_NEEDED: Final = (
    "*.json",
    "*.jinja",
    "*.tiktoken",
    "additional_chat_templates/*.jinja",
    "merges.txt",
    "tokenizer.model",
    "tokenizer.model.v*",
    "vocab.txt",
)
"""Files beside the weights: configuration, tokenizer, chat templates."""

_WEIGHTS: Final = (
    ("model.safetensors",),
    ("model.safetensors.index.json", "model-*-of-*.safetensors"),
    ("gptfast.json", "weights-*.safetensors"),
    ("*.safetensors.index.json", "*.safetensors"),
    ("*.safetensors",),
    ("pytorch_model.bin",),
    ("pytorch_model.bin.index.json", "pytorch_model-*-of-*.bin"),
    ("consolidated*.pth",),
    ("*.pth",),
    ("*.bin",),
)
"""File sets that hold the weights, in order of preference: the first whose first pattern matches is taken."""

_INDEX: Final = re.compile(r".*\.index\.json(\..*)?")


def model_files(names: Iterable[str]) -> list[str]:
    """The files that a model needs: one set of weights, configuration, tokenizer, chat templates."""
    names = list(names)
    for way in _WEIGHTS:
        weights = [name for name in names if _fits(name, way)]
        if any(fnmatch.fnmatchcase(name, way[0]) for name in weights):
            break
    else:
        weights = []
    beside = [name for name in names if _fits(name, _NEEDED) and not _INDEX.fullmatch(name)]
    return sorted({*weights, *beside})


def matching(names: Iterable[str], include: Sequence[str], exclude: Sequence[str]) -> list[str]:
    """Files that match a pattern of `include` (default: the files that a model needs) and none of `exclude`.

    Patterns are shell patterns in which `*` also matches slashes; `folder/` matches everything in a folder.
    """
    names = list(names)
    chosen = [name for name in names if _matches(name, include)] if include else model_files(names)
    return sorted(name for name in chosen if not _matches(name, exclude))


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, f"{each}*" if each.endswith("/") else each) for each in patterns)


def _fits(name: str, patterns: Sequence[str]) -> bool:
    """Whether a file matches a pattern at the same folder depth."""
    return any(fnmatch.fnmatchcase(name, each) and name.count("/") == each.count("/") for each in patterns)
