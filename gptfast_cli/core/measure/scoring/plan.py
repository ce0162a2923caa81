"""In which order and company passages go through a model, so that what they have in common is fed once.

Passages that begin alike, such as a question with each of its answers, make a unit. Its first passage is fed from the
beginning, the others go on where they part from it. Units of about one length share a batch, whose rows fit into a
cache of bounded size.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from gptfast_cli.core.decode.runner import common_prefix
from gptfast_cli.core.measure.scoring.passages import Passage
from gptfast_cli.core.model.cache import BUCKET

_WORTH_SHARING = 8
"""Tokens that all passages begin with: for fewer than these nobody waits until the first one has been fed."""


@dataclass(frozen=True, slots=True)
class Room:
    """What is held at once while passages are read, at most.

    cache_tokens: tokens with keys and values, or one passage where that is more
    n_rows:       passages side by side
    piece_tokens: tokens that are fed at once, or one for each row where that is more
    piece_rows:   rows of logits at once
    """

    cache_tokens: int
    n_rows: int
    piece_tokens: int
    piece_rows: int


@dataclass(frozen=True, slots=True)
class Follower:
    """A passage, by its number, and how many of the tokens that it feeds its leader feeds just so."""

    passage: int
    n_shared: int


@dataclass(frozen=True, slots=True)
class Unit:
    """Passages that begin alike, by their numbers; `longest` counts the tokens that one of them feeds."""

    leader: int
    followers: tuple[Follower, ...]
    n_rows: int  # of the cache that it takes: who shares all of its tokens needs none
    longest: int


@dataclass(frozen=True, slots=True)
class Batch:
    """Units that go through a model together, in a cache of `n_rows` rows."""

    units: tuple[Unit, ...]
    n_rows: int


def batches(passages: Sequence[Passage], room: Room) -> Iterator[Batch]:
    """All passages, the longest first."""
    fed = [passage.fed for passage in passages]
    order = sorted(range(len(fed)), key=fed.__getitem__)  # neighbours begin alike
    beginning = common_prefix(fed[order[0]], fed[order[-1]]) if order else 0  # of all
    units = sorted(_units(fed, order, beginning, room), key=lambda unit: unit.longest, reverse=True)
    for n_rows, alike in groupby(units, key=lambda unit: _n_rows(unit.longest, room)):
        batch: list[Unit] = []
        waits = beginning >= _WORTH_SHARING
        for unit in alike:
            if batch and (waits or sum(each.n_rows for each in batch) + unit.n_rows > n_rows):
                waits = False
                yield Batch(tuple(batch), n_rows)
                batch = []
            batch.append(unit)
        yield Batch(tuple(batch), n_rows)


def _units(fed: Sequence[tuple[int, ...]], order: Sequence[int], beginning: int, room: Room) -> Iterator[Unit]:
    """Neighbours that have at least half of what is left of them, behind the beginning of all, in common."""
    unit: Unit | None = None
    for number in order:
        if unit is not None:
            n_shared = common_prefix(fed[unit.leader], fed[number])
            joined = Unit(
                unit.leader,
                (*unit.followers, Follower(number, n_shared)),
                unit.n_rows + (n_shared < len(fed[number])),
                max(unit.longest, len(fed[number])),
            )
            is_alike = 2 * (n_shared - beginning) >= len(fed[number]) - beginning
            if is_alike and joined.n_rows <= _n_rows(joined.longest, room):
                unit = joined
                continue
            yield unit
        unit = Unit(number, (), 1, len(fed[number]))
    if unit is not None:
        yield unit


def _n_rows(longest: int, room: Room) -> int:
    """Rows of a cache for passages of this length: a power of two, so that few sizes are ever made."""
    row_tokens = -(-longest // BUCKET) * BUCKET
    n_rows = min(max(1, room.cache_tokens // row_tokens), room.n_rows)
    return 1 << (n_rows.bit_length() - 1)
