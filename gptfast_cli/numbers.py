"""Types of numeric options: a number or a list of numbers, from a flag, an environment variable or the settings file.

Each is a `parser` of typer. It takes a text or a TOML value, refuses NaN, infinity and whatever is out of its range,
and says in one phrase what it takes: `a whole number from 1 to 64`.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import typer

LARGEST_INTEGER: Final = 2**31 - 1
"""What a 32-bit integer of C holds: sizes, counts and token ids."""

LARGEST_SEED: Final = 2**64 - 1

_AUTO: Final = "auto"
_LARGEST_NUMBER: Final = 3.4e38  # of float32
_LONGEST_LIST: Final = 1000
_WHOLE: Final = re.compile(r"[+-]?[0-9]{1,40}")
_DECIMAL: Final = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


class NumberError(typer.BadParameter):
    """A value that an option cannot take; `wanted` is a phrase that follows `must be`."""

    def __init__(self, given: object, wanted: str) -> None:
        super().__init__(f"must be {wanted}, not {str(given)!r}.")
        self.wanted = wanted


@dataclass(frozen=True, slots=True)
class Integer:
    """A whole number from `minimum` to `maximum`, both included."""

    minimum: int = 0
    maximum: int = LARGEST_INTEGER

    def __call__(self, value: object) -> int:
        """The number. Raises NumberError."""
        text = str(value).strip()
        number = int(text) if _WHOLE.fullmatch(text) else None
        if number is None or not self.minimum <= number <= self.maximum:
            is_above = number is not None and number > self.maximum
            raise NumberError(value, f"a whole number {self.range(names_largest=is_above)}")
        return number

    def range(self, *, names_largest: bool = False) -> str:
        """The range as words; that a number must fit its C type is said only where one does not."""
        if self.maximum == LARGEST_INTEGER and not names_largest:
            return f"of at least {self.minimum}"
        return f"from {self.minimum} to {self.maximum}"


@dataclass(frozen=True, slots=True)
class Number:
    """A finite number from `minimum` to `maximum`; the minimum itself only where `is_closed`."""

    minimum: float = 0.0
    maximum: float = _LARGEST_NUMBER
    is_closed: bool = True

    def __call__(self, value: object) -> float:
        """The number. Raises NumberError."""
        text = str(value).strip()
        number = float(text) if _DECIMAL.fullmatch(text) else math.nan
        is_low = number < self.minimum or (number == self.minimum and not self.is_closed)
        if math.isnan(number) or is_low or number > self.maximum:
            raise NumberError(value, f"a number {self.range()}")
        return number

    def range(self) -> str:
        """The range as words."""
        if self.maximum == _LARGEST_NUMBER:
            return f"{'of at least' if self.is_closed else 'above'} {self.minimum:g}"
        if self.is_closed:
            return f"from {self.minimum:g} to {self.maximum:g}"
        return f"above {self.minimum:g} and at most {self.maximum:g}"


@dataclass(frozen=True, slots=True)
class IntegerOrAuto:
    """A whole number, or the word `auto`."""

    number: Integer

    def __call__(self, value: object) -> str:
        """The number's digits, or `auto`. Raises NumberError."""
        if str(value) == _AUTO:
            return _AUTO
        try:
            return str(self.number(value))
        except NumberError as error:
            raise NumberError(value, f"{error.wanted}, or {_AUTO}") from error


@dataclass(frozen=True, slots=True)
class IntegerList:
    """Whole numbers, each once, in the order in which they were written as `text`."""

    text: str
    numbers: tuple[int, ...]

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class NumberList:
    """Numbers, each once, in the order in which they were written as `text`."""

    text: str
    numbers: tuple[float, ...]

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class Integers:
    """Whole numbers between commas, and ranges with both ends: `1,2,4` or `1..8`."""

    item: Integer

    def __call__(self, value: object) -> IntegerList:
        """The list. Raises NumberError."""
        if isinstance(value, IntegerList):  # a default
            return value
        text = _joined(value)
        try:
            numbers = tuple(dict.fromkeys(number for item in _items(text) for number in self._range(item)))
        except NumberError as error:
            raise self._refused(text) from error
        if not 0 < len(numbers) <= _LONGEST_LIST:
            raise self._refused(text)
        return IntegerList(text, numbers)

    def _refused(self, text: str) -> NumberError:
        return NumberError(text, f"whole numbers {self.item.range()}, such as 1,2,4 or 1..8")

    def _range(self, item: str) -> range:
        first, dots, last = item.partition("..")
        start = self.item(first)
        end = self.item(last) if dots else start
        if not 0 <= end - start < _LONGEST_LIST:
            raise NumberError(item, "a range")
        return range(start, end + 1)


@dataclass(frozen=True, slots=True)
class Numbers:
    """Numbers between commas, with or without a fraction: `0,0.8`."""

    item: Number

    def __call__(self, value: object) -> NumberList:
        """The list. Raises NumberError."""
        if isinstance(value, NumberList):  # a default
            return value
        text = _joined(value)
        try:
            numbers = tuple(dict.fromkeys(map(self.item, _items(text))))
        except NumberError as error:
            raise self._refused(text) from error
        if not 0 < len(numbers) <= _LONGEST_LIST:
            raise self._refused(text)
        return NumberList(text, numbers)

    def _refused(self, text: str) -> NumberError:
        return NumberError(text, f"numbers {self.item.range()}, such as 0,0.8")


def _joined(value: Any) -> str:  # noqa: ANN401  # whatever TOML can hold
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _items(text: str) -> Iterator[str]:
    return (item.strip() for item in text.split(",") if item.strip())
