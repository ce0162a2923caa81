"""A clock that runs only around finished work: never across a `yield`, and never before the device is done."""

import time
from itertools import pairwise
from types import TracebackType

import torch

from gptfast_cli.core.device import synchronize


class Splits:
    """Seconds between points of a device's work, which a GPU notes as it comes to them: nobody waits for it."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._events: list[torch.cuda.Event] = []
        self._times: list[float] = []
        self.mark()

    def mark(self) -> None:
        """Here one part of the work ends and the next one begins."""
        if self._on_gpu:
            event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            event.record()
            self._events.append(event)
        else:
            self._times.append(time.perf_counter())

    @property
    def seconds(self) -> list[float]:
        """Of each part, once the device is known to be done with all of them."""
        if self._on_gpu:
            return [first.elapsed_time(last) / 1000 for first, last in pairwise(self._events)]
        return [last - first for first, last in pairwise(self._times)]


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
