"""Log-probabilities of passages, computed in batches that share their beginnings.

No more than a piece's logits are in memory at once, whatever the vocabulary and the passages. Which pieces there are
depends on the passages and the room: two models that are given the same of both give theirs in step.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gptfast_cli.core.device import to_device
from gptfast_cli.core.engine.runner import Runner
from gptfast_cli.core.evals.passages import (
    BatchBudget,
    Follower,
    Passage,
    PassageGroup,
    ScoringBatch,
    batches,
)
from gptfast_cli.core.models.decoder import Decoder

_PIECE_LOGITS = 1 << 25
"""Logits that are held at once: 128 MB in float32."""

_PIECE_TOKENS = 512
"""Tokens fed at once, at most: enough to keep the arithmetic busy."""

_NATIVE_PIECE_ROWS = 128
"""Rows of logits at once, at most, of a native model, which computes no more at once: they are looked at while they are
in the processor's caches, and memory is used again."""

_LEAST_TOKENS = 32
"""Of a row in a piece, or fewer rows are fed side by side: keys are read for many tokens at once."""

_ROWS = 16
_CACHE_TOKENS = 4096
_CACHE_BYTES = 1 << 29
"""Of keys and values, at most, as long as one passage fits."""


@dataclass(frozen=True, slots=True)
class TokenPrediction:
    """The place of a token that a row of logits predicts."""

    row: int
    passage: int
    token: int


@dataclass(frozen=True, slots=True)
class Reading:
    """Logits [rows, vocab_size] float32, and what each predicts: passages that begin alike share a row."""

    logits: Tensor
    predictions: tuple[TokenPrediction, ...]


@dataclass(slots=True)
class _Row:
    """What a row of the cache is fed: a passage from `begin` on; what stands before it is asked of another row."""

    fed: tuple[int, ...]
    begin: int
    asked: dict[int, list[tuple[int, int]]] = field(default_factory=dict)  # passage and token, by the token before
    n_fed: int = 0

    def ask(self, passage: int, token: int) -> None:
        """Note that a token of a passage is predicted here."""
        self.asked.setdefault(token - 1, []).append((passage, token))

    def n_asked(self, n_tokens: int) -> int:
        """Of the next tokens, those behind which something is predicted."""
        return sum(token in self.asked for token in range(self.n_fed, min(self.n_fed + n_tokens, len(self.fed))))


def batch_budget_of(model: Decoder) -> BatchBudget:
    """The room for a model: bounded memory, and enough work at once."""
    most_rows = _NATIVE_PIECE_ROWS if model.has_own_threads else _PIECE_TOKENS
    return BatchBudget(
        cache_tokens=min(_CACHE_TOKENS, _CACHE_BYTES // model.config.kv_bytes_per_token(model.dtype.itemsize)),
        n_rows=_ROWS,
        piece_tokens=_PIECE_TOKENS,
        piece_rows=max(1, min(most_rows, _PIECE_LOGITS // model.config.vocab_size)),
    )


def read_passages(
    model: Decoder, passages: Sequence[Passage], room: BatchBudget, *, batch_size: int | None = None
) -> Iterator[Reading]:
    """Predict what each passage wants predicted: each of its tokens once, and passages in any order.

    Of the rows that there is room for, `batch_size` are computed side by side, None being all; the pieces are the same.
    """
    runner: Runner | None = None
    for batch in batches(passages, room):
        if runner is None or runner.n_rows != batch.n_rows:
            runner = None  # its cache is let go of before the next one is made
            runner = Runner(model, batch.n_rows)
            runner.prepare(max(unit.longest for unit in batch.units))  # the longest come first
        leaders, followers = _rows(batch, passages)
        is_finite = True
        for rows, first_row in ((leaders, 0), (followers, len(leaders))):
            for reading in _feed(runner, rows, first_row, room, batch_size):
                is_finite &= bool(reading.logits[:, 0].isfinite().all())
                yield reading
        if not is_finite:
            runner = None  # NaN in its cache, times a weight of 0, would reach later passages


def _rows(batch: ScoringBatch, passages: Sequence[Passage]) -> tuple[list[_Row], list[_Row]]:
    """Rows that begin units, and rows that go on where they part from those; of each the longest first."""
    leaders: list[_Row] = []
    followers: list[_Row] = []
    for unit in batch.units:
        first, *others = _rows_of(unit, passages)
        leaders.append(first)
        followers += others
    for rows in (leaders, followers):
        rows.sort(key=lambda row: len(row.fed) - row.begin, reverse=True)
    return leaders, followers


def _rows_of(unit: PassageGroup, passages: Sequence[Passage]) -> list[_Row]:
    """The row of a unit's leader, which is asked what it shares with others too, and those of its followers."""
    leader = _Row(passages[unit.leader].fed, 0)
    rows = [leader]
    for follower in (Follower(unit.leader, len(leader.fed)), *unit.followers):
        passage = passages[follower.passage]
        own = _Row(passage.fed, follower.n_shared)
        for token in range(passage.n_given, len(passage.tokens)):
            (leader if token <= follower.n_shared else own).ask(follower.passage, token)
        if own.begin < len(own.fed):
            rows.append(own)
    leader.begin = min(leader.asked)  # up to here it may have been fed before
    return rows


def _feed(
    runner: Runner, rows: Sequence[_Row], first_row: int, room: BatchBudget, batch_size: int | None
) -> Iterator[Reading]:
    """Feed rows of the cache side by side, piece by piece."""
    for at, row in enumerate(rows, first_row):
        row.n_fed = runner.reuse_prefix(at, row.fed[: row.begin])
    while waiting := [at for at, row in enumerate(rows) if row.n_fed < len(row.fed)]:
        n_side_by_side, n_each = _piece([rows[at] for at in waiting], room)
        begin, end = waiting[0], waiting[n_side_by_side - 1] + 1
        step = batch_size or end - begin
        batches = [slice(at, min(at + step, end)) for at in range(begin, end, step)]
        parts = [_feed_batch(runner, rows[batch], first_row + batch.start, n_each) for batch in batches]
        places = [asked for _, asked_of_part in parts for asked in asked_of_part]
        if places:
            logits = [logits for logits, asked_of_part in parts if asked_of_part]
            yield Reading(
                logits[0] if len(logits) == 1 else torch.cat(logits),
                tuple(TokenPrediction(row, *place) for row, asked in enumerate(places) for place in asked),
            )


def _piece(waiting: Sequence[_Row], room: BatchBudget) -> tuple[int, int]:
    """How many of the rows that wait are fed, and how many tokens each."""
    n_rows, n_each = len(waiting), max(1, room.piece_tokens // len(waiting))
    while sum(row.n_asked(n_each) for row in waiting[:n_rows]) > room.piece_rows:
        if n_rows > 1 and n_each <= _LEAST_TOKENS:
            n_rows = -(-n_rows // 2)
        else:
            n_each = -(-n_each // 2)
    return n_rows, n_each


def _feed_batch(
    runner: Runner, rows: Sequence[_Row], first_row: int, n_each: int
) -> tuple[Tensor, list[list[tuple[int, int]]]]:
    """Feed rows their next tokens; returns logits [wanted, vocab_size], and what each predicts, passages and tokens."""
    pieces = [row.fed[row.n_fed : row.n_fed + n_each] for row in rows]
    wanted: list[int] = []
    places: list[list[tuple[int, int]]] = []
    n_before = 0
    for row, piece in zip(rows, pieces, strict=True):
        for token in range(row.n_fed, row.n_fed + len(piece)):
            if token in row.asked:
                places.append(row.asked[token])
                wanted.append(n_before + token - row.n_fed)
        n_before += len(piece)
        row.n_fed += len(piece)
    if not n_before:
        return torch.empty(0), []
    return runner.read(slice(first_row, first_row + len(rows)), pieces, wanted), places


@dataclass(frozen=True, slots=True)
class Score:
    """Of a passage's predicted tokens, in their order.

    logprobs: natural logarithms of probabilities, at temperature 1 with nothing cut off
    likeliest: whether no token was more probable, the lowest id among equals
    """

    logprobs: tuple[float, ...]
    likeliest: tuple[bool, ...]

    @property
    def is_defined(self) -> bool:
        """Whether all logits that it was made from were finite; else some of `logprobs` are NaN."""
        return not any(map(math.isnan, self.logprobs))

    @property
    def logprob(self) -> float:
        """Of all the predicted tokens together."""
        return math.fsum(self.logprobs)

    @property
    def is_greedy(self) -> bool:
        """Whether greedy decoding would have said just this."""
        return all(self.likeliest)


def scores(model: Decoder, passages: Sequence[Passage]) -> Iterator[tuple[int, Score]]:
    """The score of each passage beside its number, as soon as it is known, so in any order.

    In float32 on a CPU a score is the same to the bit in any company. Where logits are not finite a score is not
    defined, of that passage alone.
    """
    undefined = []
    for number, score in _scores(model, passages):
        if score.is_defined:
            yield number, score
        else:
            undefined.append(number)
    for number in undefined:  # each alone: NaN behind a token spoils the sums before it, which other passages share
        yield from ((number, score) for _, score in _scores(model, [passages[number]]))


def _scores(model: Decoder, passages: Sequence[Passage]) -> Iterator[tuple[int, Score]]:
    waiting = [passage.n_predicted for passage in passages]
    values: dict[int, list[tuple[float, bool]]] = {}
    for reading in read_passages(model, passages, batch_budget_of(model)):
        for prediction, value in zip(reading.predictions, _values(model, reading, passages), strict=True):
            number = prediction.passage
            if number not in values:
                values[number] = [(math.nan, False)] * passages[number].n_predicted
            values[number][prediction.token - passages[number].n_given] = value
            waiting[number] -= 1
            if not waiting[number]:
                logprobs, likeliest = zip(*values.pop(number), strict=True)
                yield number, Score(logprobs, likeliest)


def _values(model: Decoder, reading: Reading, passages: Sequence[Passage]) -> list[tuple[float, bool]]:
    """The log-probability of each prediction, NaN where logits are not finite, and whether it is the likeliest."""
    logits = reading.logits
    rows = to_device([prediction.row for prediction in reading.predictions], torch.int64, logits.device)
    tokens = [passages[prediction.passage].tokens[prediction.token] for prediction in reading.predictions]
    targets = to_device(tokens, torch.int64, logits.device)
    totals, likeliest = model.logsumexp_argmax(logits)
    totals = totals.where(totals.isfinite(), torch.nan)
    logprobs = logits[rows, targets] - totals[rows]
    return list(zip(logprobs.tolist(), (likeliest[rows] == targets).tolist(), strict=True))
