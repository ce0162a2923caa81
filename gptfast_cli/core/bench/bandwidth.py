"""Memory read bandwidth of this device, measured now: the roofline that decoding is compared with.

As in STREAM (McCalpin 1995), a buffer is read from end to end several times and the fastest read counts, because other
load can only slow a read down. Two kinds of read alternate, because neither is the faster one on every machine: a sum
uses all threads, and a matrix-vector product keeps more reads in flight for each thread.
"""

from dataclasses import dataclass

import torch

from gptfast_cli.core.bench.environment import Clock, last_level_cache_bytes
from gptfast_cli.core.memory import available_memory_bytes

_SECONDS = 0.15
"""Duration of a measurement in seconds, plus the two reads under way at its end."""

_COLUMNS = 16384
_ROW_BYTES = _COLUMNS * 4


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """The fastest of several reads of `n_bytes` bytes."""

    n_bytes: int
    seconds: float

    @property
    def bytes_per_second(self) -> float:
        """Bytes read per second."""
        return self.n_bytes / self.seconds


class Probe:
    """Measures a device's read bandwidth with PyTorch's threads; its buffer takes `n_bytes` of memory."""

    def __init__(self, device: torch.device, now: Clock) -> None:
        self.n_bytes = _buffer_bytes(device)
        self._now = now
        # written, not only allocated: unwritten pages may all map to one zero page
        self._matrix = torch.ones(self.n_bytes // _ROW_BYTES, _COLUMNS, device=device)
        self._vector = torch.ones(_COLUMNS, device=device)

    def measure(self) -> Bandwidth:
        """Read the buffer repeatedly for `_SECONDS`."""
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
    """Size of the buffer: at least four times the caches, at most an eighth of free memory, in whole matrix rows."""
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
        # a smaller read would be dominated by its launch
        wanted = max(4 << 30, 4 * torch.cuda.get_device_properties(device).L2_cache_size)
    else:
        free = available_memory_bytes() or 0
        wanted = max(256 << 20, 4 * last_level_cache_bytes())
    return max(1, min(wanted, free // 8) // _ROW_BYTES) * _ROW_BYTES
