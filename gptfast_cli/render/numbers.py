"""How numbers are written for a person: tokens per second, times, bytes (GB = 1e9 bytes)."""

import math


def digits(value: float) -> str:
    """A positive number in three significant digits, more above 1,000: 9.87, 98.7, 987, 9,870."""
    decimals = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:,.{decimals}f}"


def tokens_per_second(rate: float) -> str:
    """A rate in four significant digits or so: 9.87, 98.7, 987 or 9,870 tok/s."""
    return f"{digits(rate)} tok/s"


def gigabytes_per_second(rate: float) -> str:
    """A bandwidth given in GB/s."""
    return f"{digits(rate)} GB/s"


def duration(seconds: float) -> str:
    """A time in the unit that suits it: 1.23 ms, 1.23 s, 2 min 05 s."""
    if seconds < 1:
        return f"{digits(seconds * 1e3)} ms"
    if seconds < 60:
        return f"{digits(seconds)} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s"


def size(n_bytes: float) -> str:
    """A number of bytes in kB, MB or GB, powers of ten."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n_bytes >= scale:
            return f"{digits(n_bytes / scale)} {unit}"
    return f"{n_bytes:.0f} bytes"


def count(number: int) -> str:
    """A count in thousands, millions or billions, as the sizes of models are told: 3.21 M, 6.74 B."""
    for unit, scale in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= scale:
            return f"{digits(number / scale)} {unit}"
    return str(number)


def amount(done: int, total: int | None, unit: str) -> str:
    """How far a task has come: `1.20 GB of 13.5 GB`, `37 of 291 tokens`, `120 tokens`, or nothing."""
    if not done and total is None:
        return ""
    if unit == "bytes":
        return size(done) if total is None else f"{size(done)} of {size(total)}"
    return f"{done:,} {unit}" if total is None else f"{done:,} of {total:,} {unit}"


def value_so_far(value: float | None) -> str:
    """What a measurement comes to as far as it has come, behind the amount: `, 7.183 so far`, or nothing."""
    return "" if value is None or math.isnan(value) else f", {value:.4g} so far"


def share(part: float) -> str:
    """A share 0..1 in per cent: 41.3 %, 99.66 %; 100 % only for the whole."""
    if part == 1:
        return "100 %"
    return f"{100 * min(part, 0.9999):.{2 if part >= 0.99 else 1}f} %"


def nats(value: float) -> str:
    """A divergence in two significant digits: 0.00027, 0.0041, 0.12."""
    if value == 0 or value >= 1:
        return f"{value:.2f}"
    return f"{value:.2g}" if value >= 1e-4 else f"{value:.1e}"
