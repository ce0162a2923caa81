"""From a MODEL as a person names it to a decoder and its tokenizer, ready to run."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from gptfast_cli.core.checkpoints.checkpoint import Checkpoint
from gptfast_cli.core.checkpoints.reader import open_checkpoint
from gptfast_cli.core.checkpoints.resolve import Resolved, resolve
from gptfast_cli.core.config import ModelConfig
from gptfast_cli.core.decode.building import Parts, Placing, build
from gptfast_cli.core.decode.sequence import Limits
from gptfast_cli.core.decode.stopping import stop_token_ids
from gptfast_cli.core.device import computing_name, pick_device, pick_dtype, pick_kv_dtype, set_threads
from gptfast_cli.core.errors import UsageError
from gptfast_cli.core.events import Job, Note
from gptfast_cli.core.formats import WHOLE, Block, Weight
from gptfast_cli.core.kernels import Backend
from gptfast_cli.core.kernels.phases import phase
from gptfast_cli.core.model.decoder import Decoder
from gptfast_cli.core.model.weights import VOCABULARY_WEIGHTS, weight_shapes
from gptfast_cli.core.quant.stored import stored
from gptfast_cli.core.quantities import count
from gptfast_cli.core.settings import Settings
from gptfast_cli.core.stopwatch import Stopwatch
from gptfast_cli.core.token_ids import check_token_ids
from gptfast_cli.core.tokenizers import SpecialTokens, Tokenizer, open_tokenizer, special_tokens


@dataclass(frozen=True, slots=True)
class OpenedModel:
    """A model that was found; of its weights no number has been read yet.

    config:  its shape, without the padding of its vocabulary unless that was asked for
    seconds: that opening it took
    """

    found: Resolved
    checkpoint: Checkpoint
    special: SpecialTokens
    tokenizer: Tokenizer | None
    config: ModelConfig
    seconds: float

    @property
    def n_bytes(self) -> int:
        """Bytes of all weights as stored, without the rows of padding."""
        if self.config == self.checkpoint.config:
            return self.checkpoint.n_bytes
        names = [name for name in VOCABULARY_WEIGHTS if name in weight_shapes(self.config)]
        return self.checkpoint.n_bytes - sum(
            self.checkpoint.weight(name).n_bytes - self.read(name).n_bytes for name in names
        )

    def read(self, name: str, block: Block | None = None) -> Weight:
        """A weight, or a block of it, without the rows of padding."""
        n_tokens = self.config.vocab_size
        if name not in VOCABULARY_WEIGHTS or n_tokens == self.checkpoint.config.vocab_size:
            return self.checkpoint.weight(name, block)
        without_padding = Block(rows=(slice(0, n_tokens),))
        if block is None:
            return self.checkpoint.weight(name).block(without_padding)
        return self.checkpoint.weight(name, without_padding if block == WHOLE else block)


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model in memory."""

    opened: OpenedModel
    model: Decoder
    seconds: float  # that opening and loading took

    @property
    def name(self) -> str:
        """What it was asked for by, or found under."""
        return self.opened.found.name

    @property
    def checkpoint(self) -> Checkpoint:
        """Its files."""
        return self.opened.checkpoint

    @property
    def tokenizer(self) -> Tokenizer | None:
        """What its texts are read and written with, where it has one."""
        return self.opened.tokenizer

    @property
    def stop_ids(self) -> frozenset[int]:
        """The tokens that end a text of its own."""
        return self.opened.special.stop_ids

    @property
    def path(self) -> Path:
        """The folder that it was loaded from."""
        return self.checkpoint.path

    @property
    def config(self) -> ModelConfig:
        """The model's shape."""
        return self.model.config

    def check_ids(self, ids: Sequence[int]) -> None:
        """Raise TokenIdError for the first id that has no row in the model's embedding."""
        check_token_ids(ids, self.config.vocab_size, self.tokenizer.vocabulary.token_of if self.tokenizer else None)

    def limits(
        self,
        max_new_tokens: int,
        max_context: int | None,
        *,
        ignore_eos: bool = False,
        stop: Sequence[str] = (),
        turn_end_ids: frozenset[int] = frozenset(),
    ) -> Limits:
        """Limits of a sequence; `max_context` None is the model's own.

        It ends with the model's end tokens and, in a chat, those that close a turn, unless `ignore_eos`; and with
        special tokens that stand among the stop strings. Raises UsageError where `max_context` is beyond the model's.
        """
        longest = self.config.max_context
        if max_context is not None and max_context > longest:
            raise UsageError(f"--max-context {max_context} is beyond the {longest} tokens that {self.name} can hold.")
        possible = range(self.config.vocab_size)  # ids beyond it never come, and may be of any size
        end_ids = frozenset() if ignore_eos else (self.stop_ids | turn_end_ids).intersection(possible)
        named = stop_token_ids(stop, self.tokenizer).intersection(possible)
        return Limits(max_new_tokens, max_context or longest, end_ids | named, named - end_ids, longest)


def open_model(name: str | None, settings: Settings, *, with_padding: bool = False) -> OpenedModel:
    """Find a MODEL and open its files.

    Output layers are often padded to a round number of tokens. What the tokenizer does not know has no text, and was
    never trained to be said: those rows of the embedding and the head are left out, unless `with_padding`, so that no
    backend ever gives them a probability. Raises NotFoundError, CorruptError or UsageError like the parts that it is
    made of.
    """
    watch = Stopwatch(torch.device("cpu"))
    with watch, phase("load"):
        found = resolve(name, settings)
        checkpoint = open_checkpoint(found.path)
        special = special_tokens_of(checkpoint)
        tokenizer = open_tokenizer(found.path, special, n_embeddings=checkpoint.config.vocab_size)
    config = checkpoint.config
    if tokenizer is not None and not with_padding:
        config = replace(config, vocab_size=min(config.vocab_size, _n_known_tokens(tokenizer)))
    return OpenedModel(found, checkpoint, special, tokenizer, config, watch.seconds)


def _n_known_tokens(tokenizer: Tokenizer) -> int:
    """One more than the largest id that the tokenizer, or a file beside it, gives a meaning."""
    return 1 + max(tokenizer.vocab_size - 1, tokenizer.bos_id or 0, *tokenizer.stop_ids)


def load(
    model: str | OpenedModel | None,
    settings: Settings,
    placing: Placing,
    torch_backend: Backend | None = None,
    *,
    role: str = "Model",
) -> Job[LoadedModel]:
    """Find a MODEL unless it is opened, and bring it to its device, telling which one was taken and in which role.

    `torch_backend` is as in `build`. Raises NotFoundError, CorruptError or UsageError like the parts that it is made
    of.
    """
    set_threads(placing.threads)
    device = pick_device(placing.device)
    opened = model if isinstance(model, OpenedModel) else open_model(model, settings)
    checkpoint = opened.checkpoint
    dtype = pick_dtype(placing.dtype, checkpoint.dtype, device)
    stored_as = checkpoint.stored_as if checkpoint.stored_as == checkpoint.scheme else f"{checkpoint.stored_as};"
    yield Note(
        f"{role}: {opened.found.name} ({opened.found.origin}), {count(checkpoint.n_params)} parameters, "
        f"{stored_as} {computing_name(dtype, pick_kv_dtype(placing.kv_dtype, dtype))} on {device}"
    )
    if placing.verify:
        yield from checkpoint.verify()
    parts = Parts(opened.config, opened.read, partial(stored, checkpoint), opened.n_bytes, device, dtype)
    watch = Stopwatch(device)
    built = yield from build(parts, placing, settings=settings, watch=watch, torch_backend=torch_backend)
    return LoadedModel(opened, built, opened.seconds + watch.seconds)


def special_tokens_of(checkpoint: Checkpoint) -> SpecialTokens:
    """What the manifest says of special tokens; for a folder without one, what its JSON files say."""
    entry = checkpoint.special_tokens
    if entry is None:
        return special_tokens(checkpoint.path)
    return SpecialTokens(entry.bos_id, entry.add_bos, frozenset(entry.stop_ids))
