"""The clock that measurements read: once before the work and once after it, and a test may give its own."""

import time
from collections.abc import Callable
from typing import TypeAlias

import torch

from gptfast_cli.core.device import synchronize

Clock: TypeAlias = Callable[[], float]
"""Tells the seconds since some moment, once all that was begun is done."""


def device_clock(device: torch.device) -> Clock:
    """The clock of work on a device: it waits until that is done."""

    def now() -> float:
        synchronize(device)
        return time.perf_counter()

    return now
