"""The read bandwidth comes from the fastest of several reads of far more than the caches hold."""

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch

from gptfast_cli.core.bench import bandwidth
from gptfast_cli.core.bench.bandwidth import Bandwidth, Probe
from gptfast_cli.core.bench.environment import Clock, device_clock, last_level_cache_bytes

CPU = torch.device("cpu")
MIB = 1 << 20


@pytest.fixture
def of_machine(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int | None], None]:
    """Gives the probe a machine with so much cache and available memory, in MiB."""

    def set_machine(cache: int, memory: int | None) -> None:
        monkeypatch.setattr(bandwidth, "last_level_cache_bytes", lambda: cache * MIB)
        monkeypatch.setattr(bandwidth, "available_memory_bytes", lambda: None if memory is None else memory * MIB)

    return set_machine


def clock_of(costs: Iterable[float]) -> tuple[Clock, list[float]]:
    """A clock by which one read after another has taken so long, and the costs that are left."""
    left, readings = list(costs), [0.0]

    def now() -> float:
        # it is asked before the first round, then before and after each of two reads, then whether time is up
        position, readings[0] = readings[0] % 5, readings[0] + 1
        if position in (2, 4):
            seconds[0] += left.pop(0)
        return seconds[0]

    seconds = [100.0]
    return now, left


def test_the_fastest_read_tells_the_bandwidth(of_machine: Callable[[int, int | None], None]) -> None:
    of_machine(0, 128)
    now, left = clock_of([0.0625, 0.03125, 0.015625, 0.0625, 9.0])
    measured = Probe(CPU, now).measure()
    assert measured == Bandwidth(16 * MIB, 0.015625)
    assert measured.bytes_per_second == 1024 * MIB
    assert left == [9.0]


def test_a_probe_of_a_slow_memory_still_ends_after_one_round(of_machine: Callable[[int, int | None], None]) -> None:
    of_machine(0, 128)
    now, left = clock_of([2.0, 4.0, 9.0])
    assert Probe(CPU, now).measure().seconds == 2.0
    assert left == [9.0]


@pytest.mark.parametrize(
    ("cache", "memory", "expected"),
    [(0, 64_000, 256), (32, 64_000, 256), (384, 64_000, 1536), (384, 800, 100), (32, 800, 100)],
)
def test_much_more_is_read_than_caches_hold_but_of_memory_only_a_share(
    of_machine: Callable[[int, int | None], None], cache: int, memory: int, expected: int
) -> None:
    of_machine(cache, memory)
    assert bandwidth._buffer_bytes(CPU) == expected * MIB


def test_a_machine_that_says_nothing_of_its_memory_is_given_a_little(
    of_machine: Callable[[int, int | None], None],
) -> None:
    of_machine(0, None)
    assert Probe(CPU, device_clock(CPU)).n_bytes == 65536


def test_every_byte_that_counts_is_there_and_read(of_machine: Callable[[int, int | None], None]) -> None:
    of_machine(0, 64)
    probe = Probe(CPU, device_clock(CPU))
    assert probe._matrix.nbytes == probe.n_bytes == 8 * MIB
    assert probe._matrix.sum() == probe.n_bytes / 4
    assert torch.mv(probe._matrix, probe._vector).sum() == probe.n_bytes / 4
    assert probe.measure().bytes_per_second > 0


def test_caches_that_cpus_share_count_once(tmp_path: Path) -> None:
    for cpu, shared in enumerate(["0-1", "0-1", "2-3", "2-3"]):
        folder = tmp_path / f"cpu{cpu}" / "cache" / "index3"
        folder.mkdir(parents=True)
        (folder / "size").write_text("32768K\n")
        (folder / "shared_cpu_list").write_text(f"{shared}\n")
    assert last_level_cache_bytes(tmp_path) == 64 * MIB
