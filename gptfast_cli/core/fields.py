"""JSON objects from files that others wrote, read field by field; every complaint names the file and the field.

A key written twice, a number that is none, or a whole file that is no JSON ends in CorruptError, never in a
silent default: Python's own reader would take the last of two keys and accept NaN.
"""

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar

from gptfast_cli.core.errors import CorruptError
from gptfast_cli.core.quantities import size

DAMAGED: Final = "The file is damaged: fetch or convert the model again."

_LARGEST_INTEGER = 2**31 - 1  # an int of C, which sizes and counts become
_LARGEST_OFFSET = 2**63 - 1  # an int64: the sizes and places in files, which may be larger than 2 GiB
_LARGEST_NUMBER = 1e300
_MOST_DIMENSIONS = 8
_MOST_SHOWN = 60  # characters of a file in a message
_MAX_FILE_BYTES = 32_000_000  # the largest index in use has 9 million

C = TypeVar("C", bound=StrEnum)


class Fields:
    """One JSON object; `where` is the file's name and, inside it, the way to this object.

    Getters raise CorruptError if a field is missing without a default or is not what they return. A field that
    is null counts as missing.
    """

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.values = values
        self.where = where

    def __contains__(self, name: str) -> bool:
        return self.values.get(name) is not None

    def __iter__(self) -> Iterator[str]:
        return iter(self.values)

    def integer(
        self, name: str, default: int | None = None, *, minimum: int = 1, maximum: int = _LARGEST_INTEGER
    ) -> int:
        """A whole number from `minimum` to `maximum`."""
        value = self._value(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or not minimum <= value <= maximum:
            self._refuse(name, value, f"a whole number from {minimum} to {maximum}")
        return value

    def number(self, name: str, default: float | None = None, *, minimum: float | None = None) -> float:
        """A finite number, above 0 unless another minimum is given, which it may then equal."""
        value = self._value(name, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) < _LARGEST_NUMBER:
            self._refuse(name, value, "a number")
        if value <= 0 if minimum is None else value < minimum:
            self._refuse(name, value, "a number above 0" if minimum is None else f"a number of at least {minimum}")
        return float(value)

    def flag(self, name: str, default: bool | None = None) -> bool:  # noqa: FBT001 (a default, not a switch)
        """True or false."""
        value = self._value(name, default)
        if not isinstance(value, bool):
            self._refuse(name, value, "true or false")
        return value

    def text(self, name: str, default: str | None = None) -> str:
        """A string."""
        value = self._value(name, default)
        if not isinstance(value, str):
            self._refuse(name, value, "a string")
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of strings."""
        value = self._value(name, None)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            self._refuse(name, value, "a list of strings")
        return tuple(value)

    def integers(self, name: str) -> tuple[int, ...]:
        """A list of whole numbers from 0 to 2**31 - 1, such as token ids."""
        return self._whole_numbers(name, _LARGEST_INTEGER)

    def offsets(self, name: str) -> tuple[int, ...]:
        """A list of places in a file, in bytes."""
        return self._whole_numbers(name, _LARGEST_OFFSET)

    def numbers(self, name: str) -> tuple[float, ...]:
        """A list of finite numbers above 0."""
        value = self._value(name, None)
        if not isinstance(value, list) or not all(
            isinstance(item, int | float) and not isinstance(item, bool) and 0 < item < _LARGEST_NUMBER
            for item in value
        ):
            self._refuse(name, value, "a list of numbers above 0")
        return tuple(map(float, value))

    def shape(self, name: str) -> tuple[int, ...]:
        """The sizes of a tensor."""
        sizes = self._whole_numbers(name, _LARGEST_OFFSET)
        if len(sizes) > _MOST_DIMENSIONS or math.prod(sizes) > _LARGEST_OFFSET:
            self._refuse(
                name, list(sizes), f"a shape of at most {_MOST_DIMENSIONS} sizes and {_LARGEST_OFFSET} elements"
            )
        return sizes

    def section(self, name: str) -> "Fields":
        """An object inside this one."""
        value = self._value(name, None)
        if not isinstance(value, Mapping):
            self._refuse(name, value, "an object")
        return Fields(value, f"{self.where}: {name}" if ":" not in self.where else f"{self.where}.{name}")

    def sections(self, name: str) -> list["Fields"]:
        """A list of objects inside this one."""
        values = self._value(name, None)
        if not isinstance(values, list) or not all(isinstance(value, Mapping) for value in values):
            self._refuse(name, values, "a list of objects")
        return [Fields({f"{name}[{n}]": value}, self.where).section(f"{name}[{n}]") for n, value in enumerate(values)]

    def choice(self, name: str, choices: type[C]) -> C:
        """A member of an enumeration, by its value."""
        value = self._value(name, None)
        found = next((choice for choice in choices if choice == value), None)
        if found is None:
            self._refuse(name, value, f"one of {', '.join(choices)}")
        return found

    def corrupt(self, name: str, why: str) -> CorruptError:
        """The error that a field of this object is wrong, for facts that only the caller can check."""
        return CorruptError(f"{self.where}: {name}: {why}", DAMAGED)

    def _whole_numbers(self, name: str, largest: int) -> tuple[int, ...]:
        value = self._value(name, None)
        if not isinstance(value, list) or not all(type(item) is int and 0 <= item <= largest for item in value):
            self._refuse(name, value, f"a list of whole numbers from 0 to {largest}")
        return tuple(value)

    def _value(self, name: str, default: object) -> object:
        value = self.values.get(name)
        value = default if value is None else value
        if value is None:
            raise self.corrupt(name, "missing")
        return value

    def _refuse(self, name: str, value: object, wanted: str) -> NoReturn:
        shown = json.dumps(value, default=str)
        raise self.corrupt(
            name, f"{shown if len(shown) <= _MOST_SHOWN else shown[:_MOST_SHOWN] + ' …'} is not {wanted}"
        )


def read_fields(path: Path, *, infinity: bool = False) -> Fields:
    """The JSON object that a file holds; CorruptError where there is none, OSError if the file cannot be read.

    infinity: NaN and Infinity may stand in it, as Python's own reader and writer have them; no getter returns them
    """
    if path.stat().st_size > _MAX_FILE_BYTES:
        raise CorruptError(
            f"{path.name}: has {size(path.stat().st_size)}, and no such file is that large",
            DAMAGED,
        )
    return parse_fields(path.read_bytes(), path.name, infinity=infinity)


def parse_fields(text: bytes, where: str, *, infinity: bool = False) -> Fields:
    """The JSON object in `text`, UTF-8; raises CorruptError if there is none or a key comes twice."""
    constant = None if infinity else _no_constant
    try:
        values = json.loads(text.decode("utf-8"), object_pairs_hook=distinct, parse_constant=constant)
    except (ValueError, RecursionError) as error:
        raise CorruptError(f"{where}: not readable as JSON: {error}", DAMAGED) from error
    if not isinstance(values, dict):
        raise CorruptError(f"{where}: holds no JSON object", DAMAGED)
    return Fields(values, where)


def distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these pairs; raises ValueError if a key is there twice."""
    values = dict(pairs)
    if len(values) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        twice = next(name for name, n in counts.items() if n > 1)
        raise ValueError(f"{twice if len(twice) <= _MOST_SHOWN else twice[:_MOST_SHOWN] + ' …'} is there twice")
    return values


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")
