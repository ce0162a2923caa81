"""Two models on the same windows of the same text, position by position.

Both are read in step, piece by piece, so that memory holds the two models and the logits of a piece of each.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor

from gptfast_cli.core.device import to_device
from gptfast_cli.core.errors import UsageError
from gptfast_cli.core.events import Job, Note, Progress
from gptfast_cli.core.measure.comparison.contestants import Contestant, Side, n_common_tokens
from gptfast_cli.core.measure.divergence import Comparison, Divergence
from gptfast_cli.core.measure.held_out import bundled_documents
from gptfast_cli.core.measure.perplexity.protocols import ProtocolText
from gptfast_cli.core.measure.scoring.passages import Passage
from gptfast_cli.core.measure.scoring.plan import Room
from gptfast_cli.core.measure.scoring.reading import Prediction, Reading, read, room_of
from gptfast_cli.core.measure.windows import Window, groups


@dataclass(frozen=True, slots=True)
class TextOfBoth:
    """What both read: windows that can be had once, of a text read by a protocol; None is the bundled text."""

    protocol: str | None
    n_windows: int
    windows: Iterator[Window]


@dataclass(frozen=True, slots=True)
class Compared:
    """The model that was measured beside the reference.

    protocol:   by which they read a text; None is the bundled text, each document for itself
    n_windows:  that both have read, of `n_windows_all`: fewer where an interrupt came first
    is_itself:  whether both are the same in every way, so that nothing may differ
    """

    model: Side
    reference: Side
    protocol: str | None
    divergence: Divergence
    n_windows: int
    n_windows_all: int
    is_itself: bool

    @property
    def is_partial(self) -> bool:
        """Whether an interrupt came before the last window."""
        return self.n_windows < self.n_windows_all


def text_of_both(measured: Contestant, reference: Contestant, text: ProtocolText | None) -> TextOfBoth:
    """The text that was asked for, or the bundled one, as both models hold it; UsageError where one of them cannot."""
    shorter = min(measured.loaded, reference.loaded, key=lambda loaded: loaded.config.max_context)
    max_context = shorter.config.max_context
    if text is not None:
        held = replace(text, text=replace(text.text, max_context=max_context))
        held.check(shorter.name)
        return TextOfBoth(held.protocol.name, held.n_windows, held.windows())
    tokenizer = measured.loaded.tokenizer or reference.loaded.tokenizer
    if tokenizer is None:
        raise UsageError(f"{measured.loaded.name} has no tokenizer, and so cannot read a text.")
    documents = [document for document in bundled_documents(tokenizer, max_context) if len(document) > 1]
    windows = (Window(Passage(tuple(document), 1), len(document) - 1) for document in documents)
    return TextOfBoth(None, len(documents), windows)


def compare(measured: Contestant, reference: Contestant, text: TextOfBoth) -> Job[Compared | None]:
    """Read a text with both; an interrupt ends it early, None before the first piece is done."""
    comparison = Comparison()
    n_tokens = n_common_tokens(measured.loaded, reference.loaded.config.vocab_size)
    n_read, n_all = 0, text.n_windows
    n_predicted = 0
    try:
        for group in groups(text.windows, _room(measured, reference).cache_tokens):
            yield Progress("compare", n_read, n_all, "windows", so_far=comparison.kld_mean)
            passages = [window.passage for window in group]
            begins = list(accumulate((passage.n_predicted for passage in passages), initial=n_predicted))
            for theirs, ours in _readings(measured, reference, passages):
                assert theirs.predictions == ours.predictions
                targets, places = _targets(ours.predictions, passages, begins)
                comparison.add(_logits(theirs, n_tokens), _logits(ours, n_tokens), targets, places)
            n_read += len(group)
            n_predicted = begins[-1]
        yield Progress("compare", n_read, n_all, "windows", so_far=comparison.kld_mean)
    except KeyboardInterrupt:
        yield Note(f"Interrupted: both have read {n_read:,} of {n_all:,} windows.")
    if not comparison.n_positions:
        return None
    return Compared(
        model=measured.side,
        reference=reference.side,
        protocol=text.protocol,
        divergence=comparison.result(),
        n_windows=n_read,
        n_windows_all=n_all,
        is_itself=measured.is_like(reference),
    )


def _room(measured: Contestant, reference: Contestant) -> Room:
    """What both have room for, and no more side by side than the one that is to read more so."""
    ours, theirs = room_of(measured.loaded.model), room_of(reference.loaded.model)
    return Room(
        cache_tokens=min(ours.cache_tokens, theirs.cache_tokens),
        n_rows=max(measured.batch_size, reference.batch_size),
        piece_tokens=min(ours.piece_tokens, theirs.piece_tokens),
        piece_rows=min(ours.piece_rows, theirs.piece_rows),
    )


def _readings(
    measured: Contestant, reference: Contestant, passages: Sequence[Passage]
) -> Iterator[tuple[Reading, Reading]]:
    """The reference's and the measured model's, piece by piece, which are the same as both are given the same room."""
    room = _room(measured, reference)
    theirs = read(reference.loaded.model, passages, room, batch_size=reference.batch_size)
    ours = read(measured.loaded.model, passages, room, batch_size=measured.batch_size)
    return zip(theirs, ours, strict=True)


def _targets(
    predictions: Sequence[Prediction], passages: Sequence[Passage], begins: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """The text's own tokens, and their places among all that are predicted; `begins` has those of passages."""
    tokens, places = [], []
    for each in predictions:
        passage = passages[each.passage]
        tokens.append(passage.tokens[each.token])
        places.append(begins[each.passage] + each.token - passage.n_given)
    return torch.tensor(tokens), torch.tensor(places)


def _logits(reading: Reading, n_tokens: int | None) -> Tensor:
    """Of each prediction, [predictions, n_tokens]: passages that begin alike share theirs."""
    logits = reading.logits[:, :n_tokens]
    if len(logits) == len(reading.predictions):
        return logits  # every row predicts something, and they are in their order
    rows = [prediction.row for prediction in reading.predictions]
    return logits[to_device(rows, torch.int64, logits.device)]
