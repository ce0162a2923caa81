"""`gptfast speculate`: tells what a draft model will gain, and why."""

from gptfast_cli.commands.unbuilt import not_built


def speculate() -> None:
    """Judge draft models for speculative decoding (not built yet)."""
    not_built("speculate")
