"""The CPUs that a process may compute with, which may be fewer than the machine has.

A container has a quota of CPU time (cgroups, versions 1 and 2), and the two hardware threads of a core share what
computes. Threads beyond these would wait for one another.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

_ENGINE_THREADS = 64  # that the CPU engine has, and more than a machine with fewer CPUs could use
_ROOT = Path("/")


def most_threads() -> int:
    """The most threads that a command may be asked to compute with on this machine."""
    return max(_ENGINE_THREADS, os.cpu_count() or 1)


def available_cpus() -> int:
    """CPUs that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def computing_cpus(root: Path = _ROOT) -> int:
    """Physical cores among those CPUs, but no more than the quota pays for; at least 1.

    `root` is the folder whose `proc` and `sys` tell, for tests.
    """
    return max(1, int(min([_cores(root), *_quotas(root)])))


def _cores(root: Path) -> int:
    if not hasattr(os, "sched_getaffinity"):
        return available_cpus()
    cpus = os.sched_getaffinity(0)
    siblings = (root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list" for cpu in cpus)
    return len({_read(file) or str(file) for file in siblings})


def _quotas(root: Path) -> Iterator[float]:
    """CPUs that the quota of this process's groups, and of those around them, is worth."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers not in ("", "cpu") and "cpu" not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / controllers
        group = top / path.lstrip("/")
        while group.is_relative_to(top):
            with contextlib.suppress(ValueError, ZeroDivisionError):
                yield _quota(group, is_unified=not controllers)
            group = group.parent


def _quota(group: Path, *, is_unified: bool) -> float:
    """Raises ValueError if the group has none."""
    if is_unified:
        quota, period = _read(group / "cpu.max").split()
    else:
        quota, period = _read(group / "cpu.cfs_quota_us"), _read(group / "cpu.cfs_period_us")
    cpus = int(quota) / int(period)
    if cpus < 0:
        raise ValueError("no quota")
    return cpus


def _read(file: Path) -> str:
    """What a file says; nothing where there is none."""
    try:
        return file.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
