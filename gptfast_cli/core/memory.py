"""The memory that this process can still take.

A container has a limit of its own (cgroups, versions 1 and 2), and so may a process (`ulimit -v`): the system ends a
program that takes more, or refuses it what the machine still has.
"""

import contextlib
import os
import resource
from collections.abc import Iterator
from pathlib import Path

from gptfast_cli.core.errors import OutOfMemoryError
from gptfast_cli.core.quantities import size

_ROOT = Path("/")


def memory_bytes() -> int | None:
    """Bytes of memory that the machine has; None if it does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return None


def available_memory_bytes(root: Path = _ROOT) -> int | None:
    """Bytes that this process can still take; all that the machine has where no more is known, None if not that.

    `root` is the folder whose `proc` and `sys` tell, for tests.
    """
    known = [*_free_on_machine(root), *_left_to_groups(root), *_left_to_process(root)]
    return max(0, min(known)) if known else memory_bytes()


def check_fits(n_bytes: int, what: str, hint: str, available: int | None = None) -> None:
    """Raise OutOfMemoryError if `what` takes more bytes than are available (by default those of this process)."""
    free = available_memory_bytes() if available is None else available
    if free is not None and n_bytes > free:
        raise OutOfMemoryError(f"{what} take {size(n_bytes)}, and {size(free)} of memory are free.", hint)


def _free_on_machine(root: Path) -> Iterator[int]:
    """As the kernel counts it: with what it holds of files and can drop."""
    for line in _read(root / "proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            yield 1024 * int(line.split()[1])


def _left_to_process(root: Path) -> Iterator[int]:
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    n_pages = _read(root / "proc/self/statm").partition(" ")[0]
    if limit != resource.RLIM_INFINITY and n_pages.isdecimal():
        yield limit - int(n_pages) * resource.getpagesize()


def _left_to_groups(root: Path) -> Iterator[int]:
    """What the limits of this process's groups, and of those around them, leave."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "memory" not in controllers.split(","):
            continue
        limit, used = ("limit_in_bytes", "usage_in_bytes") if controllers else ("max", "current")
        top = root / "sys/fs/cgroup" / controllers
        group = top / path.lstrip("/")
        while group.is_relative_to(top):
            with contextlib.suppress(ValueError):  # of a group without a limit, which says "max"
                yield int(_read(group / f"memory.{limit}")) - int(_read(group / f"memory.{used}")) + _file_bytes(group)
            group = group.parent


def _file_bytes(group: Path) -> int:
    """Of what a group uses, bytes of files, which the kernel drops when they are in the way."""
    pairs = (line.split() for line in _read(group / "memory.stat").splitlines())
    sizes = {name: int(size) for name, size in pairs}
    return sum(sizes.get(f"total_{kind}", sizes.get(kind, 0)) for kind in ("active_file", "inactive_file"))


def _read(file: Path) -> str:
    """What a file says; nothing where there is none."""
    try:
        return file.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
