"""Which files of a repository to fetch: what a model needs, or what the person's patterns say."""

import fnmatch
import re
from collections.abc import Iterable, Sequence
from typing import Final

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
"""Beside the weights: configuration, tokenizer, chat templates."""

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
"""Ways to keep weights, the best first: one of them is taken, by its first file and then by all its files."""

_INDEX: Final = re.compile(r".*\.index\.json(\..*)?")


def model_files(names: Iterable[str]) -> list[str]:
    """The files that a model needs: one set of its weights, configuration, tokenizer, chat templates."""
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
    """The files that fit a pattern of `include`, or without any those that a model needs, and none of `exclude`.

    A pattern is a shell's, `*` stands for slashes too, and `folder/` for all that is in it.
    """
    names = list(names)
    chosen = [name for name in names if _matches(name, include)] if include else model_files(names)
    return sorted(name for name in chosen if not _matches(name, exclude))


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, f"{each}*" if each.endswith("/") else each) for each in patterns)


def _fits(name: str, patterns: Sequence[str]) -> bool:
    """Whether a file fits a pattern that names its folder, which for most is the repository itself."""
    return any(fnmatch.fnmatchcase(name, each) and name.count("/") == each.count("/") for each in patterns)
