"""Log-probabilities of passages, computed in batches with shared prefixes.

Logits are produced in pieces of bounded size. The pieces depend on the passages and the batch budget alone, so two
models with the same budget yield corresponding pieces.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gptfast_cli.core.device import to_device
from gptfast_cli.core.engine.runner import Runner
from gptfast_cli.core.evals.passages import BatchBudget, Follower, Passage, PassageGroup, ScoringBatch, batches
from gptfast_cli.core.models.decoder import Decoder

_PIECE_TOKENS = 512
"""Tokens of one forward pass: enough to be compute bound."""

_LEAST_TOKENS = 32
"""Minimum tokens of a row in a piece; with fewer, a piece has fewer rows, so that keys are read for many queries."""

_ROWS = 16
_CACHE_BYTES = 1 << 29
"""Limit of the KV cache, unless one passage needs more."""


@dataclass(frozen=True, slots=True)
class TokenPrediction:
    """The token that a row of logits predicts: passage index, and position in the passage."""

    row: int
    passage: int
    token: int


@dataclass(frozen=True, slots=True)
class PassageLogits:
    """Logits [rows, vocab_size] float32 and the tokens they predict; passages with a common prefix share rows."""

    logits: Tensor
    predictions: tuple[TokenPrediction, ...]


@dataclass(slots=True)
class _Row:
    """A row of the KV cache: a passage, fed from `begin` on."""

    fed: tuple[int, ...]
    begin: int
    asked: dict[int, list[tuple[int, int]]] = field(default_factory=dict)  # (passage, token) by the position before it
    n_fed: int = 0

    def ask(self, passage: int, token: int) -> None:
        """Request the prediction of a token."""
        self.asked.setdefault(token - 1, []).append((passage, token))

    def n_asked(self, n_tokens: int) -> int:
        """Requested predictions after the next `n_tokens` tokens."""
        return sum(token in self.asked for token in range(self.n_fed, min(self.n_fed + n_tokens, len(self.fed))))


def batch_budget_of(
    model: Decoder, *, cache_tokens: int = 4096, piece_logits: int = 1 << 25, native_piece_rows: int = 128
) -> BatchBudget:
    """The budget for a model: bounded memory, and compute-bound pieces.

    cache_tokens:      most tokens in the KV cache, unless one passage needs more
    piece_logits:      most logits of one piece: 128 MB in float32
    native_piece_rows: most rows of logits of one piece of the CPU engine: they are read from the CPU caches, and reuse
                       memory
    """
    most_rows = native_piece_rows if model.has_own_threads else _PIECE_TOKENS
    return BatchBudget(
        cache_tokens=min(cache_tokens, _CACHE_BYTES // model.config.kv_bytes_per_token(model.dtype.itemsize)),
        n_rows=_ROWS,
        piece_tokens=_PIECE_TOKENS,
        piece_rows=max(1, min(most_rows, piece_logits // model.config.vocab_size)),
    )


def passage_logits(
    model: Decoder, passages: Sequence[Passage], budget: BatchBudget, *, batch_size: int | None = None
) -> Iterator[PassageLogits]:
    """Predict every token after the context of each passage, once, in any order of passages.

    `batch_size` limits the rows of one forward pass (None: all); the pieces are the same.
    """
    runner: Runner | None = None
    for batch in batches(passages, budget):
        if runner is None or runner.n_rows != batch.n_rows:
            runner = None  # free its cache before allocating the next
            runner = Runner(model, batch.n_rows)
            runner.prepare(max(group.longest for group in batch.groups))  # sorted by length, descending
        leaders, followers = _rows(batch, passages)
        is_finite = True
        for rows, first_row in ((leaders, 0), (followers, len(leaders))):
            for reading in _feed(runner, rows, first_row, budget, batch_size):
                is_finite &= bool(reading.logits[:, 0].isfinite().all())
                yield reading
        if not is_finite:
            runner = None  # no later passage is to begin with keys that are NaN


def _rows(batch: ScoringBatch, passages: Sequence[Passage]) -> tuple[list[_Row], list[_Row]]:
    """Rows of leaders, and rows of followers; each sorted by length, descending."""
    leaders: list[_Row] = []
    followers: list[_Row] = []
    for group in batch.groups:
        first, *others = _rows_of(group, passages)
        leaders.append(first)
        followers += others
    for rows in (leaders, followers):
        rows.sort(key=lambda row: len(row.fed) - row.begin, reverse=True)
    return leaders, followers


def _rows_of(group: PassageGroup, passages: Sequence[Passage]) -> list[_Row]:
    """The row of the leader, which also predicts what followers share with it, and the rows of the followers."""
    leader = _Row(passages[group.leader].fed, 0)
    rows = [leader]
    for follower in (Follower(group.leader, len(leader.fed)), *group.followers):
        passage = passages[follower.passage]
        own = _Row(passage.fed, follower.n_shared)
        for token in range(passage.n_context, len(passage.tokens)):
            (leader if token <= follower.n_shared else own).ask(follower.passage, token)
        if own.begin < len(own.fed):
            rows.append(own)
    leader.begin = min(leader.asked)  # an earlier prefix may be in the cache
    return rows


def _feed(
    runner: Runner, rows: Sequence[_Row], first_row: int, budget: BatchBudget, batch_size: int | None
) -> Iterator[PassageLogits]:
    """Feed rows of the cache in pieces."""
    for at, row in enumerate(rows, first_row):
        row.n_fed = runner.reuse_prefix(at, row.fed[: row.begin])
    while waiting := [at for at, row in enumerate(rows) if row.n_fed < len(row.fed)]:
        n_side_by_side, n_each = _piece([rows[at] for at in waiting], budget)
        begin, end = waiting[0], waiting[n_side_by_side - 1] + 1
        step = batch_size or end - begin
        batches = [slice(at, min(at + step, end)) for at in range(begin, end, step)]
        parts = [_feed_batch(runner, rows[batch], first_row + batch.start, n_each) for batch in batches]
        places = [asked for _, asked_of_part in parts for asked in asked_of_part]
        if places:
            logits = [logits for logits, asked_of_part in parts if asked_of_part]
            yield PassageLogits(
                logits[0] if len(logits) == 1 else torch.cat(logits),
                tuple(TokenPrediction(row, *place) for row, asked in enumerate(places) for place in asked),
            )


def _piece(waiting: Sequence[_Row], budget: BatchBudget) -> tuple[int, int]:
    """Rows of the next piece, and tokens of each."""
    n_rows, n_each = len(waiting), max(1, budget.piece_tokens // len(waiting))
    while sum(row.n_asked(n_each) for row in waiting[:n_rows]) > budget.piece_rows:
        if n_rows > 1 and n_each <= _LEAST_TOKENS:
            n_rows = -(-n_rows // 2)
        else:
            n_each = -(-n_each // 2)
    return n_rows, n_each


def _feed_batch(
    runner: Runner, rows: Sequence[_Row], first_row: int, n_each: int
) -> tuple[Tensor, list[list[tuple[int, int]]]]:
    """Feed the next tokens of rows; returns logits [wanted, vocab_size] and the (passage, token) of each."""
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
    """Scores of the predicted tokens of a passage, in order.

    logprobs:  natural log-probabilities at temperature 1, without top-k or top-p
    likeliest: whether the token is the argmax (lowest id among equals)
    """

    logprobs: tuple[float, ...]
    likeliest: tuple[bool, ...]

    @property
    def is_defined(self) -> bool:
        """Whether all logits were finite; otherwise some of `logprobs` are NaN."""
        return not any(map(math.isnan, self.logprobs))

    @property
    def logprob(self) -> float:
        """Log-probability of all predicted tokens."""
        return math.fsum(self.logprobs)

    @property
    def is_greedy(self) -> bool:
        """Whether greedy decoding gives exactly these tokens."""
        return all(self.likeliest)


def scores(
    model: Decoder, passages: Sequence[Passage], budget: BatchBudget | None = None
) -> Iterator[tuple[int, Score]]:
    """(index, score) of each passage, as soon as it is complete, in any order; `budget` None: that of the model.

    On the CPU engine in float32 scores are batch-invariant, bit for bit. Non-finite logits make the score of that
    passage alone undefined.
    """
    budget = budget or batch_budget_of(model)
    undefined = []
    for number, score in _scores(model, passages, budget):
        if score.is_defined:
            yield number, score
        else:
            undefined.append(number)
    for number in undefined:  # scored alone: NaN after a token spoils sums that other passages of its batch share
        yield from ((number, score) for _, score in _scores(model, [passages[number]], budget))


def _scores(model: Decoder, passages: Sequence[Passage], budget: BatchBudget) -> Iterator[tuple[int, Score]]:
    waiting = [passage.n_predicted for passage in passages]
    values: dict[int, list[tuple[float, bool]]] = {}
    for reading in passage_logits(model, passages, budget):
        for prediction, value in zip(reading.predictions, _values(model, reading, passages), strict=True):
            number = prediction.passage
            if number not in values:
                values[number] = [(math.nan, False)] * passages[number].n_predicted
            values[number][prediction.token - passages[number].n_context] = value
            waiting[number] -= 1
            if not waiting[number]:
                logprobs, likeliest = zip(*values.pop(number), strict=True)
                yield number, Score(logprobs, likeliest)


def _values(model: Decoder, reading: PassageLogits, passages: Sequence[Passage]) -> list[tuple[float, bool]]:
    """(log-probability, is argmax) of each prediction; NaN if logits are not finite."""
    logits = reading.logits
    rows = to_device([prediction.row for prediction in reading.predictions], torch.int64, logits.device)
    tokens = [passages[prediction.passage].tokens[prediction.token] for prediction in reading.predictions]
    targets = to_device(tokens, torch.int64, logits.device)
    totals, likeliest = model.logsumexp_argmax(logits)
    totals = totals.where(totals.isfinite(), torch.nan)
    logprobs = logits[rows, targets] - totals[rows]
    return list(zip(logprobs.tolist(), (likeliest[rows] == targets).tolist(), strict=True))
