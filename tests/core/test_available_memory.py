"""Memory that is free is what machine, container and process leave, and what does not fit is refused."""

import os
import resource
from pathlib import Path

import pytest

from gptfast_cli.core.errors import OutOfMemoryError
from gptfast_cli.core.memory import available_memory_bytes, check_fits, memory_bytes


def machine(root: Path, files: dict[str, str]) -> Path:
    for name, text in {"proc/meminfo": "MemTotal:  2048 kB\nMemAvailable:   1024 kB\n", **files}.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return root


UNIFIED = {
    "proc/self/cgroup": "0::/outer/inner\n",
    "sys/fs/cgroup/outer/inner/memory.max": "max\n",
    "sys/fs/cgroup/outer/inner/memory.current": "5\n",
    "sys/fs/cgroup/outer/memory.max": "500000\n",
    "sys/fs/cgroup/outer/memory.current": "450000\n",
    "sys/fs/cgroup/outer/memory.stat": "anon 7\nactive_file 20000\ninactive_file 100000\n",
}
FIRST = {
    "proc/self/cgroup": "9:cpu,cpuacct:/other\n4:memory:/box\n",
    "sys/fs/cgroup/memory/box/memory.limit_in_bytes": "500000\n",
    "sys/fs/cgroup/memory/box/memory.usage_in_bytes": "450000\n",
    "sys/fs/cgroup/memory/box/memory.stat": "active_file 1\ntotal_active_file 20000\ntotal_inactive_file 100000\n",
}


@pytest.mark.parametrize(("files", "expected"), [({}, 1 << 20), (UNIFIED, 170_000), (FIRST, 170_000)])
def test_the_least_that_machine_and_groups_leave_is_free(tmp_path: Path, files: dict[str, str], expected: int) -> None:
    assert available_memory_bytes(machine(tmp_path, files)) == expected


def test_a_limit_of_the_process_counts(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_AS)
    files = {"proc/self/statm": "268000000 5 5\n", "proc/meminfo": "MemAvailable: 99000000 kB\n"}
    resource.setrlimit(resource.RLIMIT_AS, (1 << 40, before[1]))
    try:
        assert available_memory_bytes(machine(tmp_path, files)) == ((1 << 40) - 268_000_000 * resource.getpagesize())
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def test_where_nothing_is_known_all_memory_counts_as_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object) -> int:
        raise ValueError("unrecognized configuration name")

    assert available_memory_bytes(tmp_path) == memory_bytes()
    monkeypatch.setattr(os, "sysconf", unknown)
    assert available_memory_bytes(tmp_path) is None


def test_what_does_not_fit_is_refused_with_both_sizes() -> None:
    check_fits(3_000_000_000, "The weights", "Take fewer.", 3_000_000_000)
    with pytest.raises(OutOfMemoryError, match=r"The weights take 3\.00 GB, and 2\.90 GB of memory are free\."):
        check_fits(3_000_000_000, "The weights", "Take fewer.", 2_900_000_000)
