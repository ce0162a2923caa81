"""Threads are as many as there are cores to compute with, and no more than the quota of a container pays for."""

import os
from pathlib import Path

import pytest

from gptfast_cli.core.cpus import computing_cpus

CPUS = {0, 1, 2, 3, 4, 5, 6, 7}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of four cores with two hardware threads each."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: CPUS, raising=False)
    for cpu in CPUS:
        write(tmp_path / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list", f"{cpu % 4},{cpu % 4 + 4}\n")
    return tmp_path


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def test_hardware_threads_of_one_core_count_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert computing_cpus(root) == 4
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 4})
    assert computing_cpus(root) == 2


@pytest.mark.parametrize(
    ("quota", "expected"),
    [("300000 100000", 3), ("250000 100000", 2), ("50000 100000", 1), ("max 100000", 4), ("900000 100000", 4)],
)
def test_a_quota_of_the_second_version_counts(root: Path, quota: str, expected: int) -> None:
    write(root / "proc/self/cgroup", "0::/user/job\n")
    write(root / "sys/fs/cgroup/user/job/cpu.max", f"{quota}\n")
    assert computing_cpus(root) == expected


def test_a_quota_of_a_group_around_it_counts(root: Path) -> None:
    write(root / "proc/self/cgroup", "0::/user/job\n")
    write(root / "sys/fs/cgroup/user/cpu.max", "200000 100000\n")
    write(root / "sys/fs/cgroup/user/job/cpu.max", "max 100000\n")
    assert computing_cpus(root) == 2


@pytest.mark.parametrize(("quota", "expected"), [("150000", 1), ("300000", 3), ("-1", 4)])
@pytest.mark.parametrize("controllers", ["cpu", "cpu,cpuacct"])
def test_a_quota_of_the_first_version_counts(root: Path, quota: str, expected: int, controllers: str) -> None:
    write(root / "proc/self/cgroup", f"3:cpuset:/\n1:{controllers}:/box\n0::/\n")
    write(root / f"sys/fs/cgroup/{controllers}/box/cpu.cfs_quota_us", quota)
    write(root / f"sys/fs/cgroup/{controllers}/box/cpu.cfs_period_us", "100000")
    assert computing_cpus(root) == expected


def test_where_nothing_is_set_each_cpu_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: CPUS, raising=False)
    assert computing_cpus(tmp_path) == 8
