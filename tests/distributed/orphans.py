"""Processes whose parent was killed: whether they still run."""

import time
from collections.abc import Sequence
from pathlib import Path


def end_within_seconds(pids: Sequence[int]) -> None:
    """Orphans end; whoever adopts them may take a while to reap them."""
    deadline = time.monotonic() + 10
    while any(is_running(pid) for pid in pids):
        assert time.monotonic() < deadline, "they live on"
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False
