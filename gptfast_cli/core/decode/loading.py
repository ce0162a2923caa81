"""From a MODEL as a person names it to a decoder and its tokenizer, ready to run."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from gptfast_cli.core.checkpoints.checkpoint import Checkpoint
from gptfast_cli.core.checkpoints.reader import open_checkpoint
from gptfast_cli.core.checkpoints.resolve import resolve
from gptfast_cli.core.config import ModelConfig
from gptfast_cli.core.decode.building import Parts, Placing, build
from gptfast_cli.core.decode.sequence import Limits
from gptfast_cli.core.decode.stopping import stop_token_ids
from gptfast_cli.core.device import computing_name, pick_device, pick_dtype, pick_kv_dtype, set_threads
from gptfast_cli.core.errors import UsageError
from gptfast_cli.core.events import Job, Note
from gptfast_cli.core.kernels import Backend
from gptfast_cli.core.kernels.phases import phase
from gptfast_cli.core.model.decoder import Decoder
from gptfast_cli.core.quant.stored import stored
from gptfast_cli.core.settings import Settings
from gptfast_cli.core.stopwatch import Stopwatch
from gptfast_cli.core.token_ids import check_token_ids
from gptfast_cli.core.tokenizers import SpecialTokens, Tokenizer, open_tokenizer, special_tokens


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model in memory."""

    name: str
    checkpoint: Checkpoint
    model: Decoder
    tokenizer: Tokenizer | None
    stop_ids: frozenset[int]
    seconds: float  # that loading took

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
        return Limits(max_new_tokens, max_context or longest, end_ids | named, named - end_ids)


def load(
    name: str | None,
    settings: Settings,
    placing: Placing,
    torch_backend: Backend | None = None,
    *,
    role: str = "Model",
) -> Job[LoadedModel]:
    """Find a MODEL and bring it to its device, telling which one was taken and in which role.

    `torch_backend` is as in `build`. Raises NotFoundError, CorruptError or UsageError like the parts that it is made
    of.
    """
    set_threads(placing.threads)
    device = pick_device(placing.device)
    watch = Stopwatch(device)
    with watch, phase("load"):
        found = resolve(name, settings)
        checkpoint = open_checkpoint(found.path)
        dtype = pick_dtype(placing.dtype, checkpoint.dtype, device)
        special = special_tokens_of(checkpoint)
        tokenizer = open_tokenizer(found.path, special, n_embeddings=checkpoint.config.vocab_size)
    yield Note(
        f"{role}: {found.name} ({found.origin}), {checkpoint.n_params / 1e6:,.1f} M parameters, "
        f"{checkpoint.scheme} {computing_name(dtype, pick_kv_dtype(placing.kv_dtype, dtype))} on {device}"
    )
    if placing.verify:
        yield from checkpoint.verify()
    storages = partial(stored, checkpoint)
    parts = Parts(checkpoint.config, checkpoint.weight, storages, checkpoint.n_bytes, device, dtype)
    model = yield from build(parts, placing, settings=settings, watch=watch, torch_backend=torch_backend)
    return LoadedModel(found.name, checkpoint, model, tokenizer, special.stop_ids, watch.seconds)


def special_tokens_of(checkpoint: Checkpoint) -> SpecialTokens:
    """What the manifest says of special tokens; for a folder without one, what its JSON files say."""
    entry = checkpoint.special_tokens
    if entry is None:
        return special_tokens(checkpoint.path)
    return SpecialTokens(entry.bos_id, entry.add_bos, frozenset(entry.stop_ids))
