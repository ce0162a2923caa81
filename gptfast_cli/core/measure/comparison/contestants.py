"""Two models that are to be compared: the one that is measured, and the reference, how each runs, and why they fit."""

from dataclasses import dataclass

from gptfast_cli.core.decode.backend import CPU, REFERENCE
from gptfast_cli.core.decode.building import Placing
from gptfast_cli.core.decode.loading import LoadedModel, load, open_model
from gptfast_cli.core.decode.ranges import check_at_least
from gptfast_cli.core.device import AUTO, dtype_name
from gptfast_cli.core.errors import UsageError
from gptfast_cli.core.events import Job, Note
from gptfast_cli.core.model.native import NativeModel
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
class Side:
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
class Contestant:
    """A model in memory, and how it is to run."""

    loaded: LoadedModel
    placing: Placing
    batch_size: int

    @property
    def side(self) -> Side:
        """What is told of it."""
        model = self.loaded.model
        chosen = {name: getattr(self.placing, name) for name in _ROUNDS}
        return Side(
            name=self.loaded.name,
            scheme=self.loaded.checkpoint.scheme,
            dtype=dtype_name(model.dtype),
            device=model.device.type,
            backend=CPU if isinstance(model, NativeModel) else REFERENCE,
            batch_size=self.batch_size,
            roundings=tuple(f"{name} {value}" for name, value in chosen.items() if value not in (None, AUTO)),
        )

    def is_like(self, other: "Contestant") -> bool:
        """Whether both are one model that runs in one way."""
        return self.side == other.side and self.loaded.path == other.loaded.path


def load_reference(measured: Contestant, options: AgainstOptions, settings: Settings) -> Job[Contestant]:
    """Bring the reference to the device of the model that is measured, where it runs likewise unless told otherwise.

    What the measured model is told to round on the way, the reference is not. Raises UsageError where both do not have
    one vocabulary, else what loading a model raises.
    """
    ours = measured.placing
    placing = Placing(
        ours.device, options.dtype or ours.dtype, ours.threads, options.backend or ours.backend, verify=ours.verify
    )
    opened = open_model(options.model, settings, with_padding=True)
    size = opened.config.vocab_size
    difference = _difference(measured.loaded, size, opened.tokenizer)
    if difference is not None:  # before all of the model is read
        raise UsageError(f"{measured.loaded.name} cannot be compared with {opened.found.name}: {difference}.", _ANOTHER)
    loaded = yield from load(opened, settings, placing, role="Reference")
    reference = Contestant(loaded, placing, options.batch_size or measured.batch_size)
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
