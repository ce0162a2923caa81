"""Passages to score, and the batches in which they are fed to a model.

Passages with a common prefix, such as a question with each of its answers, form a group: its leader is fed from the
start, its followers from where they differ from it. Groups of similar length share a batch, whose rows fit into a KV
cache of bounded size.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from gptfast_cli.core.backends.base import KEY_BLOCK
from gptfast_cli.core.engine.runner import common_prefix
from gptfast_cli.core.errors import UsageError


@dataclass(frozen=True, slots=True)
class Passage:
    """Tokens: the first `n_context` (at least one) are context, each later one is predicted from all before it."""

    tokens: tuple[int, ...]
    n_context: int

    @property
    def fed(self) -> tuple[int, ...]:
        """Tokens fed to the model: all but the last."""
        return self.tokens[:-1]

    @property
    def n_predicted(self) -> int:
        """Number of predicted tokens."""
        return len(self.tokens) - self.n_context


def fit_passage(context: Sequence[int], continuation: Sequence[int], max_context: int) -> Passage:
    """A continuation after its context, truncated from the left to the model's context length.

    Raises UsageError for an empty context or continuation, and for a continuation longer than `max_context`.
    """
    if not context or not continuation:
        raise UsageError("A passage needs at least one token of context and one to predict.")
    if len(continuation) > max_context:
        raise UsageError(
            f"A continuation of {len(continuation)} tokens exceeds the context of {max_context} tokens.",
            "Split it, or use a model with a longer context.",
        )
    tokens = (*context, *continuation)[-(max_context + 1) :]
    return Passage(tokens, len(tokens) - len(continuation))


@dataclass(frozen=True, slots=True)
class Window:
    """A passage, and the weight of its mean loss in the total, in tokens."""

    passage: Passage
    weight: int


def groups(windows: Iterable[Window], max_tokens: int) -> Iterator[list[Window]]:
    """Consecutive windows in groups of at most `max_tokens` tokens; a longer window forms its own group."""
    group: list[Window] = []
    n_tokens = 0
    for window in windows:
        if group and n_tokens + len(window.passage.tokens) > max_tokens:
            yield group
            group, n_tokens = [], 0
        group.append(window)
        n_tokens += len(window.passage.tokens)
    if group:
        yield group


_MIN_COMMON_PREFIX = 8
"""From this length on, the prefix common to all passages is fed once, by a first batch of one group."""


@dataclass(frozen=True, slots=True)
class BatchBudget:
    """Limits on memory while passages are scored.

    cache_tokens: tokens in the KV cache, or one passage if that is longer
    n_rows:       passages in a batch
    piece_tokens: tokens of one forward pass, or one per row if that is more
    piece_rows:   rows of logits of one forward pass
    """

    cache_tokens: int
    n_rows: int
    piece_tokens: int
    piece_rows: int


@dataclass(frozen=True, slots=True)
class Follower:
    """A passage (index), and the length of the prefix that it shares with its leader."""

    passage: int
    n_shared: int


@dataclass(frozen=True, slots=True)
class PassageGroup:
    """Indices of passages with a common prefix; `longest` is the largest number of fed tokens."""

    leader: int
    followers: tuple[Follower, ...]
    n_rows: int  # cache rows; a follower that shares all its tokens needs none
    longest: int


@dataclass(frozen=True, slots=True)
class ScoringBatch:
    """Groups that are fed together, in a KV cache of `n_rows` rows."""

    groups: tuple[PassageGroup, ...]
    n_rows: int


def batches(passages: Sequence[Passage], budget: BatchBudget) -> Iterator[ScoringBatch]:
    """Batches of all passages, the longest first."""
    fed = [passage.fed for passage in passages]
    order = sorted(range(len(fed)), key=fed.__getitem__)  # sorted: passages with a common prefix are neighbours
    prefix = common_prefix(fed[order[0]], fed[order[-1]]) if order else 0  # common to all passages
    grouped = sorted(_groups(fed, order, prefix, budget), key=lambda group: group.longest, reverse=True)
    for n_rows, alike in groupby(grouped, key=lambda group: _n_rows(group.longest, budget)):
        batch: list[PassageGroup] = []
        waits = prefix >= _MIN_COMMON_PREFIX
        for group in alike:
            if batch and (waits or sum(each.n_rows for each in batch) + group.n_rows > n_rows):
                waits = False
                yield ScoringBatch(tuple(batch), n_rows)
                batch = []
            batch.append(group)
        yield ScoringBatch(tuple(batch), n_rows)


def _groups(
    fed: Sequence[tuple[int, ...]], order: Sequence[int], prefix: int, budget: BatchBudget
) -> Iterator[PassageGroup]:
    """Group neighbours that share at least half of their tokens after the prefix common to all."""
    group: PassageGroup | None = None
    for number in order:
        if group is not None:
            n_shared = common_prefix(fed[group.leader], fed[number])
            joined = PassageGroup(
                group.leader,
                (*group.followers, Follower(number, n_shared)),
                group.n_rows + (n_shared < len(fed[number])),
                max(group.longest, len(fed[number])),
            )
            is_alike = 2 * (n_shared - prefix) >= len(fed[number]) - prefix
            if is_alike and joined.n_rows <= _n_rows(joined.longest, budget):
                group = joined
                continue
            yield group
        group = PassageGroup(number, (), 1, len(fed[number]))
    if group is not None:
        yield group


def _n_rows(longest: int, budget: BatchBudget) -> int:
    """Cache rows for passages of this length: a power of two, so that few cache sizes are allocated."""
    row_tokens = -(-longest // KEY_BLOCK) * KEY_BLOCK
    n_rows = min(max(1, budget.cache_tokens // row_tokens), budget.n_rows)
    return 1 << (n_rows.bit_length() - 1)
