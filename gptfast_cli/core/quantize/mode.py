"""A mode as a person writes it: a scheme, or a scheme and a rounding in one word, such as int4-gptq."""

from gptfast_cli.core.errors import UsageError
from gptfast_cli.core.registry import plug_names

NEAREST = "nearest"
"""The rounding that goes without saying, and so is not part of a name."""


def roundings_by_name() -> tuple[str, ...]:
    """Names of the roundings, without loading any."""
    return plug_names("gptfast_cli.core.quantize.quantizers")


def read_mode(mode: str, rounding: str | None) -> tuple[str, str]:
    """The scheme and the rounding that --mode and --rounding mean together; UsageError where they name two roundings.

    A word that is neither is a scheme's name, which is looked up later.
    """
    scheme, _, named = mode.rpartition("-")
    if not scheme or named not in roundings_by_name():
        return mode, rounding or NEAREST
    if rounding not in (None, named):
        raise UsageError(f"--mode {mode} and --rounding {rounding} are two roundings.", "Name one of them.")
    return scheme, named


def modes(schemes: list[str]) -> list[str]:
    """Every mode of these schemes; a rounding that goes without saying is left out."""
    named = [name for name in roundings_by_name() if name != NEAREST]
    return [*schemes, *(f"{scheme}-{name}" for scheme in schemes if scheme != "plain" for name in named)]
