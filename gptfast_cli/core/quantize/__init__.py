"""Quantization: nearest, search and GPTQ, calibration, and which scheme each weight gets.

Here: the names of quantizers in `--mode`, a scheme and a quantizer in one word such as int4-gptq; without torch.
"""

from gptfast_cli.core.errors import UsageError
from gptfast_cli.core.registry import plug_names

NEAREST = "nearest"
"""The default quantizer, which is left out of names: int4 is int4-nearest."""


def quantizer_names() -> tuple[str, ...]:
    """Names of the quantizers, without importing any."""
    return plug_names("gptfast_cli.core.quantize.quantizers")


def read_mode(mode: str, rounding: str | None) -> tuple[str, str]:
    """The scheme and the quantizer named by --mode and --rounding; UsageError where they name two quantizers.

    The scheme is not checked here.
    """
    scheme, _, named = mode.rpartition("-")
    if not scheme or named not in quantizer_names():
        return mode, rounding or NEAREST
    if rounding not in (None, named):
        raise UsageError(f"--mode {mode} and --rounding {rounding} name two quantizers.", "Name one of them.")
    return scheme, named


def modes(schemes: list[str]) -> list[str]:
    """Every mode of these schemes, the default quantizer left out."""
    named = [name for name in quantizer_names() if name != NEAREST]
    return [*schemes, *(f"{scheme}-{name}" for scheme in schemes if scheme != "plain" for name in named)]
