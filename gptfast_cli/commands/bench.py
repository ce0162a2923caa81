"""`gptfast bench`: measures how fast a model is at each batch size."""

from gptfast_cli.commands.unbuilt import not_built


def bench() -> None:
    """Measure a model's speed (not built yet)."""
    not_built("bench")
