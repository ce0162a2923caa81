"""How numbers are written for a person: tokens per second, times, bytes (GB = 1e9 bytes), and the machine of them."""

import math
from typing import TYPE_CHECKING

from gptfast_cli.core.quantities import count, digits, size

if TYPE_CHECKING:  # it loads PyTorch
    from gptfast_cli.core.bench.environment import Environment

__all__ = [
    "amount",
    "count",
    "digits",
    "duration",
    "gigabytes_per_second",
    "machine_line",
    "nats",
    "program_version",
    "share",
    "size",
    "tokens_per_second",
    "value_so_far",
]


def tokens_per_second(rate: float) -> str:
    """A rate in four significant digits or so: 9.87, 98.7, 987 or 9,870 tok/s."""
    return f"{digits(rate)} tok/s"


def gigabytes_per_second(rate: float) -> str:
    """A bandwidth given in GB/s."""
    return f"{digits(rate)} GB/s"


def duration(seconds: float) -> str:
    """A time in the unit that suits it: 1.23 ms, 1.23 s, 2 min 05 s."""
    if seconds < 0.9995:  # beyond it rounds to 1,000 ms
        return f"{digits(seconds * 1e3)} ms"
    if seconds < 59.95:  # beyond it rounds to 60.0 s
        return f"{digits(seconds)} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s"


def amount(done: int, total: int | None, unit: str) -> str:
    """Progress of a task: `1.20 GB of 13.5 GB`, `37 of 291 tokens`, `120 tokens`, or nothing."""
    if not done and total is None:
        return ""
    if unit == "bytes":
        return size(done) if total is None else f"{size(done)} of {size(total)}"
    return f"{done:,} {unit}" if total is None else f"{done:,} of {total:,} {unit}"


def value_so_far(value: float | None) -> str:
    """The value of a measurement under way, after the amount: `, 7.183 so far`, or nothing."""
    return "" if value is None or math.isnan(value) else f", {value:.4g} so far"


def share(part: float) -> str:
    """A share 0..1 in per cent: 41.3 %, 99.66 %; 100 % only for the whole."""
    if part == 1:
        return "100 %"
    rounded = min(part, 0.9999) if part < 1 else part
    return f"{100 * rounded:.{2 if part >= 0.99 else 1}f} %"


def nats(value: float) -> str:
    """A divergence in two significant digits: 0.00027, 0.0041, 0.12."""
    if value == 0 or value >= 1:
        return f"{value:.2f}"
    return f"{value:.2g}" if value >= 1e-4 else f"{value:.1e}"


def machine_line(about: "Environment") -> str:
    """The machine, the versions and the day of a measurement in one line."""
    threads = f"{about.threads} thread{'' if about.threads == 1 else 's'} of {about.cpu or 'a CPU'}"
    ranks = "" if about.ranks == 1 else f"{about.ranks} ranks, each on "
    return (
        f"{ranks}{about.gpu or threads}, {about.dtype} on {about.device}; torch {about.torch}, "
        f"Python {about.python}, {program_version(about.gptfast, about.commit)}; {about.date[:10]}"
    )


def program_version(version: str, commit: str | None) -> str:
    """The program with its version and the first ten digits of its commit: `gptfast 0.1.0, commit 8fa64bd266-dirty`."""
    known = f", commit {commit[:10]}{'-dirty' * commit.endswith('-dirty')}" if commit else ""
    return f"gptfast {version}{known}"
