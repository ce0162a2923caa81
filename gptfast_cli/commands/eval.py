"""`gptfast eval`: measures how well a model does, and how far it is from another."""

from gptfast_cli.commands.unbuilt import not_built


def evaluate() -> None:
    """Measure a model's quality (not built yet)."""
    not_built("eval")
