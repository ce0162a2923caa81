"""Comparison of models with a reference on the same text: KLD, same top token, and perplexity ratio.

All models compute the same pieces in turn, so memory holds all of them and one piece of logits of each.
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

    bits_per_weight: of all its parameters, as stored
    batch_size:      maximum passages of one forward pass
    roundings:       rounding options that were set, such as "activations float"
    """

    name: str
    scheme: str
    dtype: str
    device: str
    backend: str
    bits_per_weight: float
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
        bits_per_weight=8 * loaded.checkpoint.n_bytes / loaded.checkpoint.n_params,
        batch_size=batch_size,
        roundings=tuple(f"{name} {value}" for name, value in chosen.items() if value not in (None, AUTO)),
    )


def load_reference(measured: Sequence[LoadedModel], options: ReferenceRequest, settings: Settings) -> Job[LoadedModel]:
    """Load the reference on the device of the measured models, in the same configuration unless `options` differ.

    Their rounding options (activations, KV dtype) do not apply to the reference. Raises UsageError if the vocabularies
    differ, and what loading a model raises.
    """
    ours = measured[0].runtime
    runtime = RuntimeConfig(
        ours.device, options.dtype or ours.dtype, ours.threads, options.backend or ours.backend, verify=ours.verify
    )
    opened = open_model(options.model, settings, with_padding=True)
    size = opened.config.vocab_size
    for each in measured:
        difference = _difference(each, size, opened.tokenizer)
        if difference is not None:  # before the weights are read
            raise UsageError(f"{each.name} cannot be compared with {opened.found.name}: {difference}.", _ANOTHER)
    reference = yield from load(opened, settings, runtime, role="Reference")
    n_common = {n_common_tokens(each, size) for each in measured if each.config.vocab_size != size}
    for n_tokens in n_common:
        yield Note(f"Compared over the {n_tokens:,} tokens of the vocabulary, without padding.")
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
    """The text for all: windows (an iterator) by a perplexity protocol; None is the bundled text."""

    protocol: str | None
    n_windows: int
    windows: Iterator[Window]


@dataclass(frozen=True, slots=True)
class Compared:
    """Result of a comparison.

    protocol:   perplexity protocol; None is the bundled text, one window per document
    n_windows:  windows that the models computed, of `n_windows_all`; fewer after an interrupt
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


@dataclass(frozen=True, slots=True)
class Comparisons:
    """Results of models that were compared with one reference on one text, in the order in which they were named."""

    each: tuple[Compared, ...]

    @property
    def first(self) -> Compared:
        """That of the first model."""
        return self.each[0]

    @property
    def is_partial(self) -> bool:
        """Whether the run was interrupted."""
        return self.first.is_partial


def common_text(models: Sequence[LoadedModel], text: ProtocolText | None) -> CommonText:
    """The requested or bundled text, cut to the shortest context. Raises UsageError if a model cannot read it."""
    shorter = min(models, key=lambda loaded: loaded.config.max_context)
    max_context = shorter.config.max_context
    if text is not None:
        held = replace(text, text=replace(text.text, max_context=max_context))
        held.check(shorter.name)
        return CommonText(held.protocol.name, held.n_windows, held.windows())
    tokenizer = next((loaded.tokenizer for loaded in models if loaded.tokenizer is not None), None)
    if tokenizer is None:
        raise UsageError(f"{models[0].name} has no tokenizer, so it cannot read text.")
    documents = [document for document in bundled_documents(tokenizer, max_context) if len(document) > 1]
    windows = (Window(Passage(tuple(document), 1), len(document) - 1) for document in documents)
    return CommonText(None, len(documents), windows)


def compare(
    measured: Sequence[LoadedModel],
    reference: LoadedModel,
    text: CommonText,
    batch_sizes: tuple[int, int],
    budget: BatchBudget | None = None,
) -> Job[Comparisons | None]:
    """Compare models with the reference on a text, which it reads once.

    batch_sizes: maximum passages of a forward pass of a model, and of the reference
    budget:      limits for all; None: the smallest of their own, with the larger batch size

    An interrupt gives a partial result, None before the first piece.
    """
    own, theirs = [_summary(each, batch_sizes[0]) for each in measured], _summary(reference, batch_sizes[1])
    are_itself = [
        summary == theirs and each.path == reference.path for summary, each in zip(own, measured, strict=True)
    ]
    for summary, is_itself in zip(own, are_itself, strict=True):
        if is_itself:
            yield Note(f"{summary.name} is compared with itself: all differences must be 0.")
    budget = budget or _budget([loaded.model for loaded in (*measured, reference)], max(batch_sizes))
    comparisons = [Comparison() for _ in measured]
    n_tokens = [n_common_tokens(each, reference.config.vocab_size) for each in measured]
    n_read, n_all = 0, text.n_windows
    n_predicted = 0
    try:
        for group in groups(text.windows, budget.cache_tokens):
            yield Progress("compare", n_read, n_all, "windows", so_far=comparisons[0].kld_mean)
            passages = [window.passage for window in group]
            begins = list(accumulate((passage.n_predicted for passage in passages), initial=n_predicted))
            # the same budget gives corresponding pieces
            of_reference = passage_logits(reference.model, passages, budget, batch_size=batch_sizes[1])
            of_others = [passage_logits(each.model, passages, budget, batch_size=batch_sizes[0]) for each in measured]
            for expected in of_reference:
                targets, places = _targets(expected.predictions, passages, begins)
                for comparison, pieces, n in zip(comparisons, of_others, n_tokens, strict=True):
                    found = next(pieces)
                    assert found.predictions == expected.predictions
                    comparison.add(_logits(expected, n), _logits(found, n), targets, places)
                    del found  # before the next model computes
            n_read += len(group)
            n_predicted = begins[-1]
        yield Progress("compare", n_read, n_all, "windows", so_far=comparisons[0].kld_mean)
    except KeyboardInterrupt:
        yield Note(f"Interrupted: all have read {n_read:,} of {n_all:,} windows.")
    if not all(comparison.n_positions for comparison in comparisons):
        return None
    return Comparisons(
        tuple(
            Compared(
                model=summary,
                reference=theirs,
                protocol=text.protocol,
                divergence=comparison.result(),
                n_windows=n_read,
                n_windows_all=n_all,
                is_itself=is_itself,
            )
            for summary, comparison, is_itself in zip(own, comparisons, are_itself, strict=True)
        )
    )


def _budget(models: Sequence[Decoder], n_rows: int) -> BatchBudget:
    """The smallest budget of the models, with `n_rows` rows."""
    budgets = [batch_budget_of(model) for model in models]
    return BatchBudget(
        cache_tokens=min(budget.cache_tokens for budget in budgets),
        n_rows=n_rows,
        piece_tokens=min(budget.piece_tokens for budget in budgets),
        piece_rows=min(budget.piece_rows for budget in budgets),
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
