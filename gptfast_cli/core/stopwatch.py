"""A clock that runs only around finished work: never across a `yield`, and never before the device is done."""

import time
from types import TracebackType

import torch

from gptfast_cli.core.device import synchronize


class Stopwatch:
    """Adds up the seconds spent inside its `with` blocks on one device."""

    def __init__(self, device: torch.device) -> None:
        self.seconds = 0.0  # in all blocks so far
        self._device = device
        self._start = 0.0

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        synchronize(self._device)
        self.seconds += time.perf_counter() - self._start
