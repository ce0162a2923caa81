"""How fast this device reads its memory now: the roof that decoding is measured against.

As in STREAM (McCalpin 1995), memory is read from end to end several times and the fastest time counts: what else
the machine does can only slow a read down. Two ways of reading take turns, because neither is the faster one
everywhere: a sum runs on all threads, and a matrix times a vector keeps more reads of one thread under way.
"""

from dataclasses import dataclass

import torch

from gptfast_cli.core.bench.environment import Clock, last_level_cache_bytes
from gptfast_cli.core.device import available_memory_bytes

_SECONDS = 0.15
"""Time that a probe takes, and the last two reads that it has begun."""

_COLUMNS = 16384
_ROW_BYTES = _COLUMNS * 4


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """The fastest of several reads of `n_bytes` bytes."""

    n_bytes: int
    seconds: float

    @property
    def bytes_per_second(self) -> float:
        """Bytes that memory gives in a second."""
        return self.n_bytes / self.seconds


class Probe:
    """Measures the read bandwidth of a device, with as many threads as PyTorch uses; it holds `n_bytes` of memory."""

    def __init__(self, device: torch.device, now: Clock) -> None:
        self.n_bytes = _buffer_bytes(device)
        self._now = now
        # written, not merely reserved: until then every page of it may be one and the same
        self._matrix = torch.ones(self.n_bytes // _ROW_BYTES, _COLUMNS, device=device)
        self._vector = torch.ones(_COLUMNS, device=device)

    def measure(self) -> Bandwidth:
        """Read the memory for a moment."""
        start = self._now()
        seconds: list[float] = []
        while not seconds or self._now() - start < _SECONDS:
            for read in (self._sum, self._multiply):
                begin = self._now()
                read()
                seconds.append(self._now() - begin)
        return Bandwidth(self.n_bytes, min(seconds))

    def _sum(self) -> None:
        self._matrix.sum()

    def _multiply(self) -> None:
        torch.mv(self._matrix, self._vector)


def _buffer_bytes(device: torch.device) -> int:
    """Far more than all caches hold, and a small share of the memory that is free; whole rows of the matrix."""
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
        # a read of less than this would be over so soon that to start it would count
        wanted = max(4 << 30, 4 * torch.cuda.get_device_properties(device).L2_cache_size)
    else:
        free = available_memory_bytes() or 0
        wanted = max(256 << 20, 4 * last_level_cache_bytes())
    return max(1, min(wanted, free // 8) // _ROW_BYTES) * _ROW_BYTES
