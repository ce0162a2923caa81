"""Comparison of a model with a reference on the same text: KLD, same top token, and perplexity ratio.

Both models compute the same pieces in turn, so memory holds both models and one piece of logits of each.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor

from gptfast_cli.core.device import AUTO, dtype_name, to_device
from gptfast_cli.core.engine.build import RuntimeConfig
from gptfast_cli.core.engine.load import LoadedModel, load, open_model
from gptfast_cli.core.engine.options import check_at_least
from gptfast_cli.core.errors import UsageError
from gptfast_cli.core.evals.divergence import Comparison, Divergence
from gptfast_cli.core.evals.held_out import bundled_documents
from gptfast_cli.core.evals.passages import BatchBudget, Passage, Window, groups
from gptfast_cli.core.evals.protocols import ProtocolText
from gptfast_cli.core.evals.scoring import PassageLogits, TokenPrediction, batch_budget_of, passage_logits
from gptfast_cli.core.events import Job, Note, Progress
from gptfast_cli.core.models.decoder import Decoder
from gptfast_cli.core.settings import Settings
from gptfast_cli.core.tokenizers import Tokenizer, vocabulary_difference

_ANOTHER = (
    "Compare models with the same vocabulary, such as a model and its quantized variant, or a draft and its target."
)

_ROUNDING_FIELDS = ("activations", "kv_dtype")
"""Fields of RuntimeConfig that round numbers and are reported beside the dtype."""


@dataclass(frozen=True, slots=True)
class ReferenceRequest:
    """The reference MODEL, and how it runs; None: as the measured model."""

    model: str
    dtype: str | None = None
    backend: str | None = None
    batch_size: int | None = None

    def check(self) -> None:
        """Raise UsageError for values out of range."""
        check_at_least(1, {"--against-batch-size": self.batch_size})


@dataclass(frozen=True, slots=True)
class ModelSummary:
    """How one of the models ran.

    batch_size: maximum passages of one forward pass
    roundings:  rounding options that were set, such as "activations float"
    """

    name: str
    scheme: str
    dtype: str
    device: str
    backend: str
    batch_size: int
    roundings: tuple[str, ...]


def _summary(loaded: LoadedModel, batch_size: int) -> ModelSummary:
    chosen = {name: getattr(loaded.runtime, name) for name in _ROUNDING_FIELDS}
    return ModelSummary(
        name=loaded.name,
        scheme=loaded.scheme,
        dtype=dtype_name(loaded.model.dtype),
        device=loaded.model.device.type,
        backend=loaded.model.backend,
        batch_size=batch_size,
        roundings=tuple(f"{name} {value}" for name, value in chosen.items() if value not in (None, AUTO)),
    )


def load_reference(measured: LoadedModel, options: ReferenceRequest, settings: Settings) -> Job[LoadedModel]:
    """Load the reference on the device of the measured model, in the same configuration unless `options` differ.

    The measured model's rounding options (activations, KV dtype) do not apply to the reference. Raises UsageError if
    the vocabularies differ, and what loading a model raises.
    """
    ours = measured.runtime
    runtime = RuntimeConfig(
        ours.device, options.dtype or ours.dtype, ours.threads, options.backend or ours.backend, verify=ours.verify
    )
    opened = open_model(options.model, settings, with_padding=True)
    size = opened.config.vocab_size
    difference = _difference(measured, size, opened.tokenizer)
    if difference is not None:  # before the weights are read
        raise UsageError(f"{measured.name} cannot be compared with {opened.found.name}: {difference}.", _ANOTHER)
    reference = yield from load(opened, settings, runtime, role="Reference")
    if measured.config.vocab_size != size:
        yield Note(f"Compared over the {n_common_tokens(measured, size):,} tokens of the vocabulary, without padding.")
    return reference


def n_common_tokens(measured: LoadedModel, vocab_size: int) -> int | None:
    """Number of logits that a model shares with one of `vocab_size` logits; None if their vocabularies differ.

    Output layers of one vocabulary may be padded to different sizes: then it is the size of the tokenizer.
    """
    ours = measured.config.vocab_size
    if ours == vocab_size:
        return ours
    n_real = None if measured.tokenizer is None else measured.tokenizer.vocab_size
    return n_real if n_real is not None and n_real <= min(ours, vocab_size) else None


def _difference(measured: LoadedModel, vocab_size: int, tokenizer: Tokenizer | None) -> str | None:
    """How a model's vocabulary differs from one of `vocab_size` logits and this tokenizer; None: it does not."""
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
class CommonText:
    """The text for both: windows (an iterator) by a perplexity protocol; None is the bundled text."""

    protocol: str | None
    n_windows: int
    windows: Iterator[Window]


@dataclass(frozen=True, slots=True)
class Compared:
    """Result of a comparison.

    protocol:   perplexity protocol; None is the bundled text, one window per document
    n_windows:  windows that both models computed, of `n_windows_all`; fewer after an interrupt
    is_itself:  both are the same model in the same configuration
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
        """Whether the run was interrupted."""
        return self.n_windows < self.n_windows_all


def common_text(measured: LoadedModel, reference: LoadedModel, text: ProtocolText | None) -> CommonText:
    """The requested or bundled text, cut to the shorter context. Raises UsageError if a model cannot read it."""
    shorter = min(measured, reference, key=lambda loaded: loaded.config.max_context)
    max_context = shorter.config.max_context
    if text is not None:
        held = replace(text, text=replace(text.text, max_context=max_context))
        held.check(shorter.name)
        return CommonText(held.protocol.name, held.n_windows, held.windows())
    tokenizer = measured.tokenizer or reference.tokenizer
    if tokenizer is None:
        raise UsageError(f"{measured.name} has no tokenizer, so it cannot read text.")
    documents = [document for document in bundled_documents(tokenizer, max_context) if len(document) > 1]
    windows = (Window(Passage(tuple(document), 1), len(document) - 1) for document in documents)
    return CommonText(None, len(documents), windows)


def compare(
    measured: LoadedModel,
    reference: LoadedModel,
    text: CommonText,
    batch_sizes: tuple[int, int],
    budget: BatchBudget | None = None,
) -> Job[Compared | None]:
    """Compare both models on a text, each with its batch size: maximum passages of a forward pass.

    budget: limits for both; None: the smaller of their own, with the larger batch size

    An interrupt gives a partial result, None before the first piece.
    """
    summaries = _summary(measured, batch_sizes[0]), _summary(reference, batch_sizes[1])
    is_itself = summaries[0] == summaries[1] and measured.path == reference.path
    if is_itself:
        yield Note(f"{measured.name} is compared with itself: all differences must be 0.")
    budget = budget or _budget(measured.model, reference.model, max(batch_sizes))
    comparison = Comparison()
    n_tokens = n_common_tokens(measured, reference.config.vocab_size)
    n_read, n_all = 0, text.n_windows
    n_predicted = 0
    try:
        for group in groups(text.windows, budget.cache_tokens):
            yield Progress("compare", n_read, n_all, "windows", so_far=comparison.kld_mean)
            passages = [window.passage for window in group]
            begins = list(accumulate((passage.n_predicted for passage in passages), initial=n_predicted))
            pieces = (  # the same budget gives corresponding pieces
                passage_logits(loaded.model, passages, budget, batch_size=batch_size)
                for loaded, batch_size in zip((measured, reference), batch_sizes, strict=True)
            )
            for ours, theirs in zip(*pieces, strict=True):
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
        model=summaries[0],
        reference=summaries[1],
        protocol=text.protocol,
        divergence=comparison.result(),
        n_windows=n_read,
        n_windows_all=n_all,
        is_itself=is_itself,
    )


def _budget(measured: Decoder, reference: Decoder, n_rows: int) -> BatchBudget:
    """The smaller budget of both models, with `n_rows` rows."""
    ours, theirs = batch_budget_of(measured), batch_budget_of(reference)
    return BatchBudget(
        cache_tokens=min(ours.cache_tokens, theirs.cache_tokens),
        n_rows=n_rows,
        piece_tokens=min(ours.piece_tokens, theirs.piece_tokens),
        piece_rows=min(ours.piece_rows, theirs.piece_rows),
    )


def _targets(
    predictions: Sequence[TokenPrediction], passages: Sequence[Passage], begins: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """The predicted tokens, and their indices in text order; `begins` are the first indices of passages."""
    tokens, places = [], []
    for each in predictions:
        passage = passages[each.passage]
        tokens.append(passage.tokens[each.token])
        places.append(begins[each.passage] + each.token - passage.n_context)
    return torch.tensor(tokens), torch.tensor(places)


def _logits(reading: PassageLogits, n_tokens: int | None) -> Tensor:
    """Logits of each prediction, [predictions, n_tokens]; passages with a common prefix share rows."""
    logits = reading.logits[:, :n_tokens]
    if len(logits) == len(reading.predictions):
        return logits  # one prediction per row, in order
    rows = [prediction.row for prediction in reading.predictions]
    return logits[to_device(rows, torch.int64, logits.device)]
