"""Ranks that share a row's work add up what they read; the others stand by, and a failure of one is nobody's row."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from gptfast_cli.core.bench.bandwidth import Bandwidth
from gptfast_cli.core.bench.repetitions import Failed, Timed, TimedRow, Work, measured
from gptfast_cli.core.bench.throughput import RankNumbers, RankSubset, medians, rank_subset_of
from gptfast_cli.core.cpus import computing_cpus
from gptfast_cli.core.device import torch_threads
from gptfast_cli.core.errors import OutOfMemoryError, UsageError
from gptfast_cli.core.models.process_group import ALONE, ProcessGroup
from model_files import drained


@dataclass
class Pair:
    """Two ranks, of which this is the first; the other reads thrice the bytes at half the bandwidth."""

    rank: int = 0
    size: int = 2
    n_here: int = 2
    seconds: float = 0.0
    n_meetings: int = 0
    log: list[str] = field(default_factory=list)

    def first(self, count: int) -> ProcessGroup | None:
        return ALONE if count == 1 else self

    def sum(self, x: Any) -> Any:
        raise AssertionError

    def gather(self, x: Any) -> Any:
        raise AssertionError

    def broadcast(self, value: Any) -> Any:
        self.n_meetings += 1
        return value

    def exchange(self, value: Any) -> list[Any]:
        n_bytes, bandwidth, own = value
        other = own | {"rank": 1, "peak_memory_bytes": 70, "decode_gbps": None, "collective_share": 0.5}
        return [value, [None if n_bytes is None else 3 * n_bytes, bandwidth / 2, other]]

    def guarded(self) -> AbstractContextManager[None]:
        return nullcontext()


@dataclass
class World:
    """A machine on which a row's work takes 4 seconds, one of them in collectives."""

    pair: Pair
    time: float = 0.0

    def now(self) -> float:
        return self.time

    def probe(self) -> Bandwidth:
        return Bandwidth(100, 1.0)

    def reset(self) -> None: ...

    def peak_bytes(self) -> int:
        return 60

    def row(
        self, rank_subset: RankSubset, work: Callable[[], int | None] | None = None, other_model_bytes: int = 0
    ) -> TimedRow:
        def worked() -> int:
            self.time += 4
            self.pair.seconds += 1
            return 40

        def prepare() -> Work:
            return work or worked

        return TimedRow("row", "decode", 2, prepare, rank_subset, other_model_bytes)

    def outcome(self, row: TimedRow) -> Timed | Failed:
        job = measured([row], 1, now=self.now, probe=self.probe, memory=self)
        (outcome,) = drained(job)[1]
        return outcome


@pytest.fixture
def world() -> World:
    return World(Pair())


def test_what_ranks_read_is_added_up_and_each_is_reported_by_itself(world: World) -> None:
    outcome = world.outcome(world.row(RankSubset(world.pair, world.pair, 2), other_model_bytes=8))
    assert isinstance(outcome, Timed)
    (times,) = outcome.repetitions
    assert (times.seconds, times.n_bytes, times.bandwidth, times.peak_memory_bytes) == (4, 160, 150, 70)
    assert times.ranks == (RankNumbers(0, 52, 1e-8, 0.25), RankNumbers(1, 70, None, 0.5))


def test_who_stands_by_does_nothing_and_waits_for_every_turn(world: World) -> None:
    def never() -> int:
        raise AssertionError

    outcome = world.outcome(world.row(RankSubset(world.pair, None, 1), never))
    assert isinstance(outcome, Failed) and world.pair.n_meetings == 2


def failing(error: Exception) -> Callable[[], int]:
    def work() -> int:
        raise error

    return work


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("gloo"), OutOfMemoryError("no room")])
def test_an_error_that_one_of_several_ranks_may_have_alone_ends_all(world: World, error: Exception) -> None:
    with pytest.raises(type(error)):
        world.outcome(world.row(RankSubset(world.pair, world.pair, 2), failing(error)))
    assert isinstance(world.outcome(world.row(RankSubset(world.pair, ALONE, 1), failing(error))), Failed)


def test_what_every_rank_finds_wrong_is_the_rows_error(world: World) -> None:
    row = world.row(RankSubset(world.pair, world.pair, 2), failing(UsageError("too long")))
    assert world.outcome(row) == Failed("too long")


@pytest.mark.parametrize(("size", "n_threads"), [(1, 4), (2, 2), (4, 1)])
def test_ranks_of_a_machine_share_its_cores(size: int, n_threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gptfast_cli.core.bench.throughput.computing_cpus", lambda: 4)
    with torch_threads(1):  # as joining has left it: 4 ranks, and a core for each
        assert rank_subset_of(Pair(size=4, n_here=4), size, None).n_threads == n_threads
        assert rank_subset_of(Pair(size=4, n_here=4), size, 3).n_threads == 3


def test_alone_it_has_all_that_it_can_compute_with() -> None:
    rank_subset = rank_subset_of(ALONE, 1, None)
    assert rank_subset.n_threads == min(computing_cpus(), torch.get_num_threads()) and rank_subset.group is ALONE


def test_numbers_of_several_times_are_summed_up_by_rank() -> None:
    times = [
        (RankNumbers(0, 5, 1.0, 0.1), RankNumbers(1, 9, None, 0.5)),
        (RankNumbers(0, 7, 3.0, 0.2), RankNumbers(1, 8, None, 0.7)),
        (RankNumbers(0, 6, 8.0, 0.9), RankNumbers(1, 1, None, 0.6)),
    ]
    assert medians(times) == (RankNumbers(0, 7, 3.0, 0.2), RankNumbers(1, 9, None, 0.6))
    assert medians([(), ()]) == medians([]) == ()
