"""Range checks of options that several commands share; an error names the option."""

from collections.abc import Mapping, Sequence

from gptfast_cli.core.errors import UsageError

LARGEST_SEED = 2**64 - 1
MOST_SAMPLES = 2**16


def check_at_least(minimum: int, values: Mapping[str, int | None]) -> None:
    """Raise UsageError for an option whose value is below the minimum; None: not given."""
    for option, value in values.items():
        if value is not None and value < minimum:
            raise UsageError(f"{option} must be at least {minimum}, not {value}.")


def check_seed(seed: int | None) -> None:
    """Raise UsageError for a seed that is not an unsigned 64-bit number."""
    if seed is not None and not 0 <= seed <= LARGEST_SEED:
        raise UsageError(f"--seed must be from 0 to {LARGEST_SEED}, not {seed}.")


def check_samples(n: int) -> None:
    """Raise UsageError for a number of samples that is out of its range."""
    if not 1 <= n <= MOST_SAMPLES:
        raise UsageError(f"--num-samples must be from 1 to {MOST_SAMPLES}, not {n}.")


def check_stops(stops: Sequence[str]) -> None:
    """Raise UsageError for an empty stop string."""
    if "" in stops:
        raise UsageError("--stop needs at least one character.")
