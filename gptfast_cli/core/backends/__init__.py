"""Backends: what runs the operations of a model. Here: their names, without torch."""

from typing import Final

CPU: Final = "cpu"
"""The native engine."""

REFERENCE: Final = "reference"
"""Plain PyTorch, on every device."""

BACKENDS: Final = (CPU, REFERENCE)
