"""Two models on the same text: KLD, agreement of the top token, and perplexity of both.

Both are read in step, piece by piece, so that memory holds the two models and the logits of a piece of each.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor

from gptfast_cli.core.device import AUTO, dtype_name, to_device
from gptfast_cli.core.engine.build import CPU, REFERENCE, RuntimeConfig
from gptfast_cli.core.engine.load import LoadedModel, load, open_model
from gptfast_cli.core.engine.ranges import check_at_least
from gptfast_cli.core.errors import UsageError
from gptfast_cli.core.evals.divergence import Comparison, Divergence
from gptfast_cli.core.evals.held_out import bundled_documents
from gptfast_cli.core.evals.passages import BatchBudget, Passage, Window, groups
from gptfast_cli.core.evals.protocols import ProtocolText
from gptfast_cli.core.evals.scoring import (
    Reading,
    TokenPrediction,
    batch_budget_of,
    read_passages,
)
from gptfast_cli.core.events import Job, Note, Progress
from gptfast_cli.core.models.native import NativeModel
from gptfast_cli.core.settings import Settings
from gptfast_cli.core.tokenizers import Tokenizer, vocabulary_difference

_ANOTHER = "Compare models of one vocabulary, as a model and its quantised form have it, or a draft and its target."

_ROUNDS = ("activations", "kv_dtype")
"""Of a Placing: what rounds numbers, and is not told by itself."""


@dataclass(frozen=True, slots=True)
class AgainstOptions:
    """The reference, a MODEL, and what is to be otherwise than with the model that is measured; None is likewise."""

    model: str
    dtype: str | None = None
    backend: str | None = None
    batch_size: int | None = None

    def check(self) -> None:
        """Raise UsageError for whatever is out of its range."""
        check_at_least(1, {"--against-batch-size": self.batch_size})


@dataclass(frozen=True, slots=True)
class ModelSummary:
    """One of both models as it ran.

    batch_size: passages side by side, at most
    roundings:  what it was told about rounding on the way, such as "activations float"
    """

    name: str
    scheme: str
    dtype: str
    device: str
    backend: str
    batch_size: int
    roundings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ComparedModel:
    """A model in memory, and how it is to run."""

    loaded: LoadedModel
    runtime: RuntimeConfig
    batch_size: int

    @property
    def side(self) -> ModelSummary:
        """What is told of it."""
        model = self.loaded.model
        chosen = {name: getattr(self.runtime, name) for name in _ROUNDS}
        return ModelSummary(
            name=self.loaded.name,
            scheme=self.loaded.checkpoint.scheme,
            dtype=dtype_name(model.dtype),
            device=model.device.type,
            backend=CPU if isinstance(model, NativeModel) else REFERENCE,
            batch_size=self.batch_size,
            roundings=tuple(f"{name} {value}" for name, value in chosen.items() if value not in (None, AUTO)),
        )

    def is_like(self, other: "ComparedModel") -> bool:
        """Whether both are one model that runs in one way."""
        return self.side == other.side and self.loaded.path == other.loaded.path


def load_reference(measured: ComparedModel, options: AgainstOptions, settings: Settings) -> Job[ComparedModel]:
    """Bring the reference to the device of the model that is measured, where it runs likewise unless told otherwise.

    What the measured model is told to round on the way, the reference is not. Raises UsageError where both do not have
    one vocabulary, else what loading a model raises.
    """
    ours = measured.runtime
    runtime = RuntimeConfig(
        ours.device, options.dtype or ours.dtype, ours.threads, options.backend or ours.backend, verify=ours.verify
    )
    opened = open_model(options.model, settings, with_padding=True)
    size = opened.config.vocab_size
    difference = _difference(measured.loaded, size, opened.tokenizer)
    if difference is not None:  # before all of the model is read
        raise UsageError(f"{measured.loaded.name} cannot be compared with {opened.found.name}: {difference}.", _ANOTHER)
    loaded = yield from load(opened, settings, runtime, role="Reference")
    reference = ComparedModel(loaded, runtime, options.batch_size or measured.batch_size)
    if measured.is_like(reference):
        yield Note(f"{loaded.name} is compared with itself, where nothing may differ.")
    if measured.loaded.config.vocab_size != size:
        yield Note(f"Compared over {n_common_tokens(measured.loaded, size):,} tokens: what is beyond them is padding.")
    return reference


def n_common_tokens(measured: LoadedModel, vocab_size: int) -> int | None:
    """The tokens that a model has in common with one that gives logits for so many; None where that is no vocabulary.

    Output layers of one vocabulary may be padded to several sizes: then it is the tokens that the tokenizer has.
    """
    ours = measured.config.vocab_size
    if ours == vocab_size:
        return ours
    n_real = None if measured.tokenizer is None else measured.tokenizer.vocab_size
    return n_real if n_real is not None and n_real <= min(ours, vocab_size) else None


def _difference(measured: LoadedModel, vocab_size: int, tokenizer: Tokenizer | None) -> str | None:
    """How the vocabulary of a model differs from one that has so many logits and this tokenizer; None: it does not."""
    ours, n_logits = measured.tokenizer, measured.config.vocab_size
    is_padded = n_logits != vocab_size
    if n_common_tokens(measured, vocab_size) is None or (is_padded and tokenizer is None):
        return f"it gives logits for {n_logits:,} tokens, and the reference for {vocab_size:,}"
    if ours is None or tokenizer is None:
        return None
    different = vocabulary_difference(ours, tokenizer)
    if different is not None:
        return f"its {different.what} {different.ours}, and the reference's {different.theirs}"
    return None


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

    model: ModelSummary
    reference: ModelSummary
    protocol: str | None
    divergence: Divergence
    n_windows: int
    n_windows_all: int
    is_itself: bool

    @property
    def is_partial(self) -> bool:
        """Whether an interrupt came before the last window."""
        return self.n_windows < self.n_windows_all


def text_of_both(measured: ComparedModel, reference: ComparedModel, text: ProtocolText | None) -> TextOfBoth:
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


def compare(measured: ComparedModel, reference: ComparedModel, text: TextOfBoth) -> Job[Compared | None]:
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


def _room(measured: ComparedModel, reference: ComparedModel) -> BatchBudget:
    """What both have room for, and no more side by side than the one that is to read more so."""
    ours, theirs = batch_budget_of(measured.loaded.model), batch_budget_of(reference.loaded.model)
    return BatchBudget(
        cache_tokens=min(ours.cache_tokens, theirs.cache_tokens),
        n_rows=max(measured.batch_size, reference.batch_size),
        piece_tokens=min(ours.piece_tokens, theirs.piece_tokens),
        piece_rows=min(ours.piece_rows, theirs.piece_rows),
    )


def _readings(
    measured: ComparedModel, reference: ComparedModel, passages: Sequence[Passage]
) -> Iterator[tuple[Reading, Reading]]:
    """The reference's and the measured model's, piece by piece, which are the same as both are given the same room."""
    room = _room(measured, reference)
    theirs = read_passages(reference.loaded.model, passages, room, batch_size=reference.batch_size)
    ours = read_passages(measured.loaded.model, passages, room, batch_size=measured.batch_size)
    return zip(theirs, ours, strict=True)


def _targets(
    predictions: Sequence[TokenPrediction], passages: Sequence[Passage], begins: Sequence[int]
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
