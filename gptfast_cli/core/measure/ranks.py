"""What each rank of a model in parts had to do: its memory, what it read, and how long it waited for the others."""

import statistics
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Final

import torch

from gptfast_cli.core.cpus import computing_cpus
from gptfast_cli.core.device import torch_threads
from gptfast_cli.core.measure.throughput import Metrics
from gptfast_cli.core.model.collective import ALONE, Collective


@dataclass(frozen=True, slots=True)
class RankNumbers:
    """Of one rank.

    decode_gbps:      bytes of its own part that the steps read ÷ their time, in GB = 1e9 bytes
    collective_share: 0..1, of the time of prefill and decode, the draft's with them, spent in collectives: their work,
                      and waiting for the slowest rank; on a GPU the time until they were queued, and without those of
                      compiled steps
    """

    rank: int
    peak_memory_bytes: int
    decode_gbps: float | None
    collective_share: float | None


def rank_numbers(
    together: Collective, metrics: Metrics, *, seconds: float, began: float
) -> tuple[RankNumbers, ...] | None:
    """Those of all ranks, for each of them to know; None where there is one.

    `seconds` are those of prefill and decode; `began` is what `together.seconds` was before them.
    """
    if together.size == 1:
        return None
    share = (together.seconds - began) / seconds if seconds else None
    own = RankNumbers(together.rank, metrics.peak_memory_bytes, metrics.decode_gbps, share)
    return tuple(RankNumbers(**each) for each in together.exchange(asdict(own)))


@dataclass(frozen=True, slots=True)
class Crew:
    """The ranks that a model is dealt out to, of all `everyone` that take part in a measurement.

    together:  those that do the work; None on a rank that stands by meanwhile
    size:      how many they are
    n_threads: of PyTorch, in each; None leaves them as they are
    """

    everyone: Collective = ALONE
    together: Collective | None = ALONE
    size: int = 1
    n_threads: int | None = None

    def threads(self) -> AbstractContextManager[None]:
        """With the threads that it works with, for the block."""
        return nullcontext() if self.n_threads is None else torch_threads(self.n_threads)


ALL_ALONE: Final = Crew()


def crew_of(everyone: Collective, size: int, n_threads: int | None) -> Crew:
    """The first so many ranks, with so many threads each; None divides the cores of a machine among those on it."""
    of_all = torch.get_num_threads() * everyone.n_here
    own = max(1, min(of_all, computing_cpus()) // min(size, everyone.n_here))
    return Crew(everyone, everyone.first(size), size, own if n_threads is None else n_threads)


def medians(times: Sequence[tuple[RankNumbers, ...]]) -> tuple[RankNumbers, ...]:
    """The numbers of each rank, of several times: the most memory, and medians of the rest."""
    return tuple(
        RankNumbers(
            rank=each[0].rank,
            peak_memory_bytes=max(numbers.peak_memory_bytes for numbers in each),
            decode_gbps=_median([numbers.decode_gbps for numbers in each]),
            collective_share=_median([numbers.collective_share for numbers in each]),
        )
        for each in zip(*times, strict=True)
    )


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None
