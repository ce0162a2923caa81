"""Two programs timed against each other on a machine whose speed drifts: in pairs, each between probes of its memory.

A pair is probe, one side, probe, other side, probe. Where the three probes are further apart than `LARGEST_DRIFT` the
sides met two different machines, and where others took more than `LARGEST_OTHERS` of the processors they met a crowd,
which a program that spins at its barriers suffers from the most: such a pair is set aside. It stays in the record and
counts for nothing. Which side goes first changes from pair to pair, so that neither always has the better half.
"""

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from shared_machine import LARGEST_OTHERS, Machine

LARGEST_DRIFT = 0.08
"""Of the fastest probe of a pair, that the slowest may be below it."""

Key = TypeVar("Key")


@dataclass(frozen=True, slots=True)
class Sides:
    """The same work on both sides; each call does it once and returns tokens a second."""

    peer: Callable[[], float]
    ours: Callable[[], float]


@dataclass(frozen=True, slots=True)
class Pair:
    """What both sides gave in turn.

    probes_gbps: before, between and after them, with GB = 1e9 bytes
    others:      share of all processors, 0..1, that others had meanwhile
    """

    peer_tok_s: float
    ours_tok_s: float
    probes_gbps: tuple[float, float, float]
    others: float
    peer_first: bool

    @property
    def ratio(self) -> float:
        """How many times as fast as the peer we are."""
        return self.ours_tok_s / self.peer_tok_s

    @property
    def drift(self) -> float:
        """0..1: how far the slowest probe is below the fastest."""
        return 1 - min(self.probes_gbps) / max(self.probes_gbps)

    @property
    def is_accepted(self) -> bool:
        """Whether the machine was the same for both, and theirs alone."""
        return self.drift <= LARGEST_DRIFT and self.others <= LARGEST_OTHERS


@dataclass(frozen=True, slots=True)
class Summary:
    """Medians over accepted pairs; the ratio is the median of ratios, not the ratio of medians."""

    peer_tok_s: float
    ours_tok_s: float
    ratio: float
    least_ratio: float
    largest_ratio: float
    probe_gbps: float


@dataclass(frozen=True, slots=True)
class Pairs:
    """All pairs of one row, in the order in which they were run."""

    pairs: tuple[Pair, ...] = ()

    @property
    def accepted(self) -> tuple[Pair, ...]:
        """The pairs that count."""
        return tuple(pair for pair in self.pairs if pair.is_accepted)

    @property
    def n_rejected(self) -> int:
        """Pairs that do not."""
        return len(self.pairs) - len(self.accepted)

    @property
    def summary(self) -> Summary | None:
        """None where no pair counts."""
        if not (accepted := self.accepted):
            return None
        ratios = [pair.ratio for pair in accepted]
        return Summary(
            peer_tok_s=statistics.median(pair.peer_tok_s for pair in accepted),
            ours_tok_s=statistics.median(pair.ours_tok_s for pair in accepted),
            ratio=statistics.median(ratios),
            least_ratio=min(ratios),
            largest_ratio=max(ratios),
            probe_gbps=statistics.median(probe for pair in accepted for probe in pair.probes_gbps),
        )


def collect(
    rows: Mapping[Key, Sides], machine: Machine, *, n_wanted: int, is_over: Callable[[], bool]
) -> dict[Key, Pairs]:
    """Pairs of several rows, interleaved, until each has `n_wanted` that count or time is up.

    A row that has enough is left out of further rounds. No pair begins before the machine is quiet; `is_over` is asked
    before every look whether it is.
    """
    found: dict[Key, Pairs] = {key: Pairs() for key in rows}
    while wanting := [key for key, row in found.items() if len(row.accepted) < n_wanted]:
        for key in wanting:
            is_quiet = False
            while not is_quiet:
                if is_over():
                    return found
                is_quiet = machine.is_quiet()
            pairs = found[key].pairs
            found[key] = Pairs((*pairs, _pair(rows[key], machine, peer_first=len(pairs) % 2 == 0)))
    return found


def _pair(sides: Sides, machine: Machine, *, peer_first: bool) -> Pair:
    machine.probe()  # wakes it: the first one after idling is slow
    begin = machine.moment()
    before = machine.probe()
    first = (sides.peer if peer_first else sides.ours)()
    between = machine.probe()
    second = (sides.ours if peer_first else sides.peer)()
    probes = before, between, machine.probe()
    peer, ours = (first, second) if peer_first else (second, first)
    return Pair(peer, ours, probes, machine.others_since(begin), peer_first)
