"""Passages on their way through a model: logits for every token that is predicted, piece by piece.

No more than a piece's logits are in memory at once, whatever the vocabulary and the passages. Which pieces there are
depends on the passages, the size of the vocabulary and the room of the cache: two models that have these in common give
theirs in step.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from gptfast_cli.core.decode.runner import Runner
from gptfast_cli.core.measure.scoring.passages import Passage
from gptfast_cli.core.measure.scoring.plan import Batch, Follower, Unit, batches
from gptfast_cli.core.model.decoder import Decoder

_PIECE_LOGITS = 1 << 25
"""Logits that are held at once: 128 MB in float32."""

_PIECE_TOKENS = 512
"""Tokens fed at once, at most: enough to keep the arithmetic busy."""

_CACHE_TOKENS = 4096
_CACHE_BYTES = 1 << 29
"""Of keys and values, at most, as long as one passage fits."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """The place of a token that a row of logits predicts."""

    row: int
    passage: int
    token: int


@dataclass(frozen=True, slots=True)
class Reading:
    """Logits [rows, vocab_size] float32, and what each predicts: passages that begin alike share a row."""

    logits: Tensor
    predictions: tuple[Prediction, ...]


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


def cache_room(model: Decoder) -> int:
    """Tokens whose keys and values may be held while passages are read."""
    return min(_CACHE_TOKENS, _CACHE_BYTES // model.config.kv_bytes_per_token(model.dtype.itemsize))


def read(model: Decoder, passages: Sequence[Passage], *, cache_tokens: int) -> Iterator[Reading]:
    """Predict what each passage wants predicted: each of its tokens once, and passages in any order.

    The cache has room for so many tokens, or for one passage where that is more.
    """
    n_most = max(1, min(_PIECE_TOKENS, _PIECE_LOGITS // model.config.vocab_size))
    runner: Runner | None = None
    for batch in batches(passages, cache_tokens=cache_tokens):
        if runner is None or runner.n_rows != batch.n_rows:
            runner = None  # its cache is let go of before the next one is made
            runner = Runner(model, batch.n_rows)
        leaders, followers = _rows(batch, passages)
        yield from _feed(runner, leaders, 0, n_most)
        yield from _feed(runner, followers, len(leaders), n_most)


def _rows(batch: Batch, passages: Sequence[Passage]) -> tuple[list[_Row], list[_Row]]:
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


def _rows_of(unit: Unit, passages: Sequence[Passage]) -> list[_Row]:
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


def _feed(runner: Runner, rows: Sequence[_Row], first_row: int, n_most: int) -> Iterator[Reading]:
    """Feed rows of the cache side by side, at most so many tokens at once, or one each."""
    for at, row in enumerate(rows, first_row):
        row.n_fed = runner.recall(at, row.fed[: row.begin])
    while waiting := [at for at, row in enumerate(rows) if row.n_fed < len(row.fed)]:
        span = slice(waiting[0], waiting[-1] + 1)
        n_each = max(1, n_most // len(waiting))
        pieces: list[tuple[int, ...]] = []
        wanted: list[int] = []
        predictions: list[Prediction] = []
        n_before = 0
        for row in rows[span]:
            pieces.append(row.fed[row.n_fed : row.n_fed + n_each])
            for token in range(row.n_fed, row.n_fed + len(pieces[-1])):
                if token in row.asked:
                    predictions += [Prediction(len(wanted), *place) for place in row.asked[token]]
                    wanted.append(n_before + token - row.n_fed)
            n_before += len(pieces[-1])
            row.n_fed += len(pieces[-1])
        logits = runner.read(slice(first_row + span.start, first_row + span.stop), pieces, wanted)
        if wanted:
            yield Reading(logits, tuple(predictions))
