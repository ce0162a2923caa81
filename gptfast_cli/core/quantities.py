"""Quantities as a person reads them, in messages as in tables: three significant digits, and one unit."""

_LARGEST = 999.5  # larger values would round to 1,000: use the next unit


def digits(value: float) -> str:
    """A positive number in three significant digits, more above 1,000: 9.87, 98.7, 987, 9,870."""
    decimals = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:,.{decimals}f}"


def size(n_bytes: float) -> str:
    """A number of bytes in kB, MB or GB, powers of ten."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n_bytes >= _LARGEST * scale / 1e3:
            return f"{digits(n_bytes / scale)} {unit}"
    return f"{n_bytes:.0f} bytes"


def count(number: int) -> str:
    """A count in thousands, millions or billions, as for model sizes: 3.21 M, 6.74 B."""
    for unit, scale in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= _LARGEST * scale / 1e3:
            return f"{digits(number / scale)} {unit}"
    return str(number)
