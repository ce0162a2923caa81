"""`gptfast quantize`: writes a checkpoint anew with fewer bits a weight."""

from gptfast_cli.commands.unbuilt import not_built


def quantize() -> None:
    """Store a model in 8 or 4 bits a weight (not built yet)."""
    not_built("quantize")
