"""Ranks of a process group as threads of the test: what one has, the others add up."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import reduce
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class ThreadGroup:
    """A rank; `shown` holds what each has put down, `barrier` waits for all."""

    rank: int
    size: int
    shown: list[Tensor]
    barrier: threading.Barrier

    def sum(self, x: Tensor) -> Tensor:
        self.shown[self.rank] = x
        self.barrier.wait()
        total = reduce(torch.add, self.shown)
        self.barrier.wait()
        return total


def on_threads(n_ranks: int, work: Callable[[ThreadGroup], T]) -> list[T]:
    """What `work` returns on each of the ranks."""
    shown = [torch.empty(0)] * n_ranks
    barrier = threading.Barrier(n_ranks, timeout=60)

    def run(rank: int) -> T:
        try:
            return work(ThreadGroup(rank, n_ranks, shown, barrier))
        except BaseException:
            barrier.abort()  # the others need not wait
            raise

    with ThreadPoolExecutor(n_ranks) as ranks:
        return list(ranks.map(run, range(n_ranks)))
