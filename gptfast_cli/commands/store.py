"""`gptfast --list` and `gptfast --remove NAME`: what the store holds, and taking one of it out."""

from typing import TextIO


def list_store(stream: TextIO) -> None:
    """Write a table."""


def remove_from_store(name: str, *, yes: bool) -> None:
    """Remove."""
