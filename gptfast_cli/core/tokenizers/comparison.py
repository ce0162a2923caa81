"""Whether two models have the very same vocabulary: compared whole, token by token and rule by rule.

A draft's token ids are read as its target's, and scores of two models are compared id by id. Two exchanged tokens, or
merges in another order, would go unnoticed in most texts, so that no sample of texts can tell.
"""

import filecmp
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from gptfast_cli.core.tokenizers.agreement import first_difference
from gptfast_cli.core.tokenizers.declarations import read_declarations
from gptfast_cli.core.tokenizers.tokenizer import Tokenizer
from gptfast_cli.core.tokenizers.vocabulary import Definition, Vocabulary


@dataclass(frozen=True, slots=True)
class Difference:
    """What two vocabularies differ in, and what it is in each: `what` ends in "is", as in "token 5 is"."""

    what: str
    ours: str
    theirs: str


def vocabulary_difference(ours: Tokenizer, theirs: Tokenizer) -> Difference | None:
    """The first difference of two vocabularies; None where they are the same.

    Compared are the token of every id, special tokens and how added ones are matched, merges or scores, normalizer and
    pre-tokenizer, and the tokens that begin and end a text. Files of two formats state their rules in different terms:
    there the rules are compared by sample texts.
    """
    if not _are_from_equal_files(ours, theirs):
        difference = next(_differences(ours.vocabulary, theirs.vocabulary), None)
        if difference is not None:
            return difference
    for what, here, there in (
        ("token that begins a text is", ours.bos_id, theirs.bos_id),
        ("end token is", ours.stop_ids, theirs.stop_ids),
    ):
        if here != there:
            return Difference(what, _listed(here), _listed(there))
    return None


def _are_from_equal_files(ours: Tokenizer, theirs: Tokenizer) -> bool:
    """Whether the same file, with the same tokens declared beside it, was read for both."""
    if ours.path is None or theirs.path is None or ours.path.name != theirs.path.name:
        return False
    if not filecmp.cmp(ours.path, theirs.path, shallow=False):
        return False
    here, there = read_declarations(ours.path.parent), read_declarations(theirs.path.parent)
    return (here.added, here.named, here.lists_added) == (there.added, there.named, there.lists_added)


def _differences(ours: Vocabulary, theirs: Vocabulary) -> Iterator[Difference]:
    here, there = ours.definition(), theirs.definition()
    yield from _different_tokens(here, there)
    if here.format == there.format:
        yield from _different_rules(here.rules, there.rules)
    elif (sample := first_difference(ours, theirs)) is not None:
        yield Difference(f"tokenizer's reading of {sample!r:.40} is", "as its file says", "another")


def _different_tokens(here: Definition, there: Definition) -> Iterator[Difference]:
    if here.tokens != there.tokens:
        for token_id in sorted(here.tokens.keys() | there.tokens.keys()):
            ours, theirs = (_shown(each.tokens.get(token_id)) for each in (here, there))
            if ours != theirs:
                yield Difference(f"token {token_id} is", ours, theirs)
    for token_id in sorted(here.special ^ there.special):
        kinds = ["special" if token_id in each.special else "text" for each in (here, there)]
        yield Difference(f"token {token_id}, {_shown(here.tokens.get(token_id))}, is", *kinds)


def _different_rules(here: Mapping[str, Any], there: Mapping[str, Any]) -> Iterator[Difference]:
    for name, ours in here.items():
        if ours != there[name]:
            yield _innermost(name, ours, there[name])


def _innermost(name: str, ours: object, theirs: object) -> Difference:
    """Where in two values of a file they differ first."""
    one: Any
    other: Any
    if isinstance(ours, dict) and isinstance(theirs, dict):
        key = next(key for key in (*ours, *theirs) if ours.get(key) != theirs.get(key))
        return _innermost(f"{name}, {key},", ours.get(key), theirs.get(key))
    if isinstance(ours, list) and isinstance(theirs, list):
        name = name.removesuffix(",")
        places = range(max(len(ours), len(theirs)))
        place = next(n for n in places if ours[n : n + 1] != theirs[n : n + 1])
        one, other = (each[place] if place < len(each) else None for each in (ours, theirs))
        if isinstance(one, dict):
            return _innermost(f"{name} {place}", one, other)
        return Difference(f"{name} {place} is", _shown(one), _shown(other))
    return Difference(f"{name} is", _shown(ours), _shown(theirs))


def _shown(value: object) -> str:
    text = "none" if value is None else repr(value)
    return text if len(text) <= 60 else f"{text[:60]} …"


def _listed(ids: int | frozenset[int] | None) -> str:
    if ids is None or ids == frozenset():
        return "none"
    return str(ids) if isinstance(ids, int) else ", ".join(map(str, sorted(ids)))
