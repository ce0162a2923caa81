"""The environment of a measurement: CPU, memory, versions, clock and peak memory."""

import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol, TypeAlias

import torch

import gptfast_cli
from gptfast_cli.core.cpus import available_cpus
from gptfast_cli.core.device import dtype_name, peak_memory_bytes, reset_peak_memory, synchronize
from gptfast_cli.core.memory import memory_bytes
from gptfast_cli.core.versions import find_commit

_CPUS = Path("/sys/devices/system/cpu")
_CPU_INFO = Path("/proc/cpuinfo")


def cpu_model(cpu_info: Path = _CPU_INFO) -> str | None:
    """Model name of the processor, from proc(5)'s `cpu_info` or Python; None if it is unknown."""
    return _entry(cpu_info, "model name") or platform.processor() or None


def last_level_cache_bytes(cpus: Path = _CPUS) -> int:
    """Total bytes of all last-level caches in Linux's folder of CPUs: threads may run on any of them."""
    caches: dict[str, int] = {}  # by the CPUs that share one
    for cache in cpus.glob("cpu[0-9]*/cache/index3"):
        size = _line(cache / "size").removesuffix("K")
        if size.isdecimal():
            caches[_line(cache / "shared_cpu_list")] = int(size) * 1024
    return sum(caches.values())


def _entry(file: Path, name: str) -> str | None:
    """The value of the first line `name : value`."""
    for line in _text(file).splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return None


def _line(file: Path) -> str:
    return _text(file).strip()


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


@dataclass(frozen=True, slots=True)
class Environment:
    """Program, machine and date; None if unknown. It holds no host name, user name or path.

    commit:           see `versions.find_commit`
    instruction_sets: of the CPU, as PyTorch reports them
    gpu:              name of the device; None for a CPU
    ranks:            processes that share the model
    threads:          CPU threads of PyTorch in each process, which may run on `n_cpus` CPUs
    backend:          that runs the model
    date:             UTC, ISO 8601
    """

    gptfast: str
    commit: str | None
    python: str
    torch: str
    os: str
    cpu: str | None
    n_cpus: int
    instruction_sets: tuple[str, ...]
    memory_bytes: int | None
    device: str
    gpu: str | None
    ranks: int
    threads: int
    dtype: str
    backend: str | None
    date: str


def environment(device: torch.device, dtype: torch.dtype, backend: str | None = None, n_ranks: int = 1) -> Environment:
    """The current environment, for a device, a compute dtype and the backend of a model."""
    return Environment(
        gptfast=gptfast_cli.__version__,
        commit=find_commit(),
        python=platform.python_version(),
        torch=torch.__version__,
        os=f"{platform.system()} {platform.release()} {platform.machine()}",
        cpu=cpu_model(),
        n_cpus=available_cpus(),
        instruction_sets=tuple(sorted(name for name, has in torch.cpu.get_capabilities().items() if has is True)),
        memory_bytes=memory_bytes(),
        device=device.type,
        gpu=torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        ranks=n_ranks,
        threads=torch.get_num_threads(),
        dtype=dtype_name(dtype),
        backend=backend,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
    )


class PeakMemoryReader(Protocol):
    """Reads peak memory."""

    def reset(self) -> None:
        """Reset the peak."""
        ...

    def peak_bytes(self) -> int:
        """Peak bytes in use since the reset."""
        ...


class PeakMemory:
    """Peak memory of a device, or of the process on a CPU, minus `overhead` bytes that are not part of the work."""

    def __init__(self, device: torch.device, overhead: int) -> None:
        self._device = device
        self._overhead = overhead

    def reset(self) -> None:
        reset_peak_memory(self._device)

    def peak_bytes(self) -> int:
        return max(0, peak_memory_bytes(self._device) - self._overhead)


Clock: TypeAlias = Callable[[], float]
"""Returns monotonic seconds after pending work has finished."""


def device_clock(device: torch.device) -> Clock:
    """A clock that synchronizes the device before it reads the time."""

    def now() -> float:
        synchronize(device)
        return time.perf_counter()

    return now
