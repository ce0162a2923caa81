"""Results as JSON documents: frozen dataclasses in, one line of ASCII with the schema's name first out.

The keys of a document are the names of the dataclass's fields. Where a schema deviates from that, the module that
renders the result declares the keys of each of its types, in their order, as a string of words:

    *           all fields of the dataclass; `-name` leaves one out
    name        a field or property; `name?` leaves it out where it is None
    key=a.b     the value of `a.b` under another name; null where `a` is None
    *name       the fields of the value of `name`, in place
    key+range   an interval (value, low, high), or a mapping of them: the values under `key`, [low, high] under
                `key_range`
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from types import MappingProxyType
from typing import Any, Final, TextIO, TypeAlias

Keys: TypeAlias = Mapping[type, str]
"""The keys of the types whose documents are not just their fields."""

_ALL_FIELDS: Final[Keys] = MappingProxyType({})


def write_document(schema: str, result: object, stream: TextIO, keys: Keys = _ALL_FIELDS) -> None:
    """Write a dataclass or a mapping in one line of ASCII, which any reader, locale and terminal can take."""
    stream.write(json.dumps({"schema": schema, **to_document(result, keys)}, allow_nan=False) + "\n")


def to_document(result: object, keys: Keys = _ALL_FIELDS) -> dict[str, Any]:
    """The JSON object of a dataclass or a mapping."""
    if isinstance(result, Mapping):
        return {str(key): to_json(value, keys) for key, value in result.items()}
    document: dict[str, Any] = {}
    for word in keys.get(type(result), "*").split():
        if word.startswith("-"):
            del document[word[1:]]
        elif not word.endswith("?") or getattr(result, word[:-1]) is not None:
            document.update(_items(result, word.removesuffix("?"), keys))
    return document


def to_json(value: object, keys: Keys = _ALL_FIELDS) -> Any:  # noqa: ANN401
    """The JSON value: NaN and infinities become null, paths and other objects their `str`."""
    match value:
        case None | str() | int():
            return value
        case float():
            return value if math.isfinite(value) else None
        case list() | tuple():
            return [to_json(each, keys) for each in value]
        case Mapping():
            return to_document(value, keys)
        case _ if is_dataclass(value):
            return to_document(value, keys)
        case _:
            return str(value)


def _items(result: object, word: str, keys: Keys) -> Iterator[tuple[str, Any]]:
    if word == "*":
        for field in fields(result):  # type: ignore[arg-type]  # a dataclass, see to_document
            yield field.name, to_json(getattr(result, field.name), keys)
    elif word.startswith("*"):
        yield from to_document(getattr(result, word[1:]), keys).items()
    elif word.endswith("+range"):
        yield from _intervals(word.removesuffix("+range"), result)
    else:
        key, _, path = word.partition("=")
        yield key, to_json(_value(result, path or key), keys)


def _intervals(word: str, result: object) -> Iterator[tuple[str, Any]]:
    key, _, path = word.partition("=")
    intervals = _value(result, path or key)
    for name, part in ((key, _middle), (f"{key}_range", _bounds)):
        yield (
            name,
            to_json(
                {k: part(each) for k, each in intervals.items()} if isinstance(intervals, Mapping) else part(intervals)
            ),
        )


def _middle(interval: Any) -> float | None:  # noqa: ANN401
    return None if interval is None else interval.value


def _bounds(interval: Any) -> list[float] | None:  # noqa: ANN401
    return None if interval is None else [interval.low, interval.high]


def _value(result: object, path: str) -> Any:  # noqa: ANN401
    value: object = result
    for name in path.split("."):
        value = None if value is None else getattr(value, name)
    return value
