"""What the machine says of its processor; None, or 0 bytes, where it does not say."""

import platform
from pathlib import Path

_CPUS = Path("/sys/devices/system/cpu")
_CPU_INFO = Path("/proc/cpuinfo")


def cpu_model() -> str | None:
    """The name of the processor as its maker wrote it into the chip."""
    return _entry(_CPU_INFO, "model name") or platform.processor() or None


def last_level_cache_bytes() -> int:
    """Bytes of the largest caches, all of them together: the threads of a program may run on any CPU."""
    caches: dict[str, int] = {}  # by the CPUs that share one
    for cache in _CPUS.glob("cpu[0-9]*/cache/index3"):
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
