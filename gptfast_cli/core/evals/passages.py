"""Token windows that are scored, and the batches that they are fed in.

Passages that begin alike, such as a question with each of its answers, make a unit. Its first passage is fed from the
beginning, the others go on where they part from it. Units of about one length share a batch, whose rows fit into a
cache of bounded size.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from gptfast_cli.core.engine.runner import common_prefix
from gptfast_cli.core.errors import UsageError
from gptfast_cli.core.models.kv_cache import BUCKET


@dataclass(frozen=True, slots=True)
class Passage:
    """Tokens, of which the first `n_given` are given, at least one; each of the others is predicted from all before."""

    tokens: tuple[int, ...]
    n_given: int

    @property
    def fed(self) -> tuple[int, ...]:
        """What the model is fed: the last token is only predicted."""
        return self.tokens[:-1]

    @property
    def n_predicted(self) -> int:
        """Tokens that are predicted."""
        return len(self.tokens) - self.n_given


def fitted(context: Sequence[int], continuation: Sequence[int], max_context: int) -> Passage:
    """A continuation behind as much of its context as the model can be fed, which is cut off from the left.

    Raises UsageError where there is no context or nothing to predict, and for a continuation that is longer than what
    the model holds.
    """
    if not context or not continuation:
        raise UsageError("A passage to be scored needs a token to begin with, and one that follows.")
    if len(continuation) > max_context:
        raise UsageError(
            f"A continuation of {len(continuation)} tokens is beyond the {max_context} that the model can hold.",
            "Score it in pieces, or take a model with a longer context.",
        )
    tokens = (*context, *continuation)[-(max_context + 1) :]
    return Passage(tokens, len(tokens) - len(continuation))


@dataclass(frozen=True, slots=True)
class Window:
    """A passage, and the weight of its mean among those of all windows, in tokens."""

    passage: Passage
    weight: int


def groups(windows: Iterable[Window], n_most: int) -> Iterator[list[Window]]:
    """Windows in their order, together as long as they have at most so many tokens; a longer one is a group."""
    group: list[Window] = []
    n_tokens = 0
    for window in windows:
        if group and n_tokens + len(window.passage.tokens) > n_most:
            yield group
            group, n_tokens = [], 0
        group.append(window)
        n_tokens += len(window.passage.tokens)
    if group:
        yield group


_WORTH_SHARING = 8
"""Tokens that all passages begin with: for fewer than these nobody waits until the first one has been fed."""


@dataclass(frozen=True, slots=True)
class BatchBudget:
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
class PassageGroup:
    """Passages that begin alike, by their numbers; `longest` counts the tokens that one of them feeds."""

    leader: int
    followers: tuple[Follower, ...]
    n_rows: int  # of the cache that it takes: who shares all of its tokens needs none
    longest: int


@dataclass(frozen=True, slots=True)
class ScoringBatch:
    """Units that go through a model together, in a cache of `n_rows` rows."""

    units: tuple[PassageGroup, ...]
    n_rows: int


def batches(passages: Sequence[Passage], room: BatchBudget) -> Iterator[ScoringBatch]:
    """All passages, the longest first."""
    fed = [passage.fed for passage in passages]
    order = sorted(range(len(fed)), key=fed.__getitem__)  # neighbours begin alike
    beginning = common_prefix(fed[order[0]], fed[order[-1]]) if order else 0  # of all
    units = sorted(_units(fed, order, beginning, room), key=lambda unit: unit.longest, reverse=True)
    for n_rows, alike in groupby(units, key=lambda unit: _n_rows(unit.longest, room)):
        batch: list[PassageGroup] = []
        waits = beginning >= _WORTH_SHARING
        for unit in alike:
            if batch and (waits or sum(each.n_rows for each in batch) + unit.n_rows > n_rows):
                waits = False
                yield ScoringBatch(tuple(batch), n_rows)
                batch = []
            batch.append(unit)
        yield ScoringBatch(tuple(batch), n_rows)


def _units(
    fed: Sequence[tuple[int, ...]], order: Sequence[int], beginning: int, room: BatchBudget
) -> Iterator[PassageGroup]:
    """Neighbours that have at least half of what is left of them, behind the beginning of all, in common."""
    unit: PassageGroup | None = None
    for number in order:
        if unit is not None:
            n_shared = common_prefix(fed[unit.leader], fed[number])
            joined = PassageGroup(
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
        unit = PassageGroup(number, (), 1, len(fed[number]))
    if unit is not None:
        yield unit


def _n_rows(longest: int, room: BatchBudget) -> int:
    """Rows of a cache for passages of this length: a power of two, so that few sizes are ever made."""
    row_tokens = -(-longest // BUCKET) * BUCKET
    n_rows = min(max(1, room.cache_tokens // row_tokens), room.n_rows)
    return 1 << (n_rows.bit_length() - 1)
