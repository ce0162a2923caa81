"""The most memory that a piece of work needed, apart from what the measuring itself holds."""

from typing import Protocol

import torch

from gptfast_cli.core.device import peak_memory_bytes, reset_peak_memory


class Memory(Protocol):
    """What repetitions ask about memory."""

    def reset(self) -> None:
        """Begin anew."""
        ...

    def peak_bytes(self) -> int:
        """Most bytes used at once since then."""
        ...


class PeakMemory:
    """The peak of a device, or of the process for a CPU, less `besides` bytes that are no part of the work."""

    def __init__(self, device: torch.device, besides: int) -> None:
        self._device = device
        self._besides = besides

    def reset(self) -> None:
        """See Memory."""
        reset_peak_memory(self._device)

    def peak_bytes(self) -> int:
        """See Memory."""
        return max(0, peak_memory_bytes(self._device) - self._besides)
