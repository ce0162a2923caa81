"""Numbers as they are written between commas: `1,2,4`, `1..8`, `0,0.8`; each counts once, in its order."""

from collections.abc import Iterator

from gptfast_cli.core.errors import UsageError

_LONGEST_RANGE = 1000


def whole_numbers(option: str, text: str) -> tuple[int, ...]:
    """Whole numbers, and ranges of them with both ends. Raises UsageError for anything else."""
    return tuple(dict.fromkeys(number for item in _items(text) for number in _whole(option, item)))


def decimal_numbers(option: str, text: str) -> tuple[float, ...]:
    """Numbers with or without a fraction. Raises UsageError for anything else."""
    try:
        return tuple(dict.fromkeys(map(float, _items(text))))
    except ValueError as error:
        raise UsageError(f"{option} takes numbers between commas, not {text!r}.", f"Such as {option} 0,0.8") from error


def _items(text: str) -> list[str]:
    return [item.strip() for item in text.split(",") if item.strip()]


def _whole(option: str, item: str) -> Iterator[int]:
    first, dots, last = item.partition("..")
    ends = [first, last] if dots else [first]
    if not all(end.isascii() and end.removeprefix("-").isdecimal() for end in ends):
        raise UsageError(
            f"{option} takes whole numbers between commas, not {item!r}.", f"Such as {option} 1,2,4 or {option} 1..8"
        )
    numbers = range(int(ends[0]), int(ends[-1]) + 1)
    if not 0 < len(numbers) <= _LONGEST_RANGE:
        raise UsageError(f"{option}: {item} is no range.", f"Such as {option} 1..8")
    yield from numbers
