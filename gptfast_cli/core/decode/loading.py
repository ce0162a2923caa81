"""From a MODEL as a person names it to a decoder and its tokenizer, ready to run."""

from dataclasses import dataclass

from gptfast_cli.core.checkpoints.checkpoint import Checkpoint
from gptfast_cli.core.checkpoints.reader import open_checkpoint
from gptfast_cli.core.checkpoints.resolve import resolve
from gptfast_cli.core.config import ModelConfig
from gptfast_cli.core.device import dtype_name, pick_device, pick_dtype, set_threads
from gptfast_cli.core.events import Job, Note, Progress
from gptfast_cli.core.formats import Weight, schemes
from gptfast_cli.core.kernels.reference import Reference
from gptfast_cli.core.model.transformer import Transformer
from gptfast_cli.core.model.weights import assemble, weight_shapes
from gptfast_cli.core.settings import Settings
from gptfast_cli.core.stopwatch import Stopwatch
from gptfast_cli.core.tokenizers import SpecialTokens, Tokenizer, open_tokenizer, special_tokens


@dataclass(frozen=True, slots=True)
class Placing:
    """Where and in what a model is to run; None leaves it to the machine and the checkpoint."""

    device: str = "auto"
    dtype: str | None = None
    threads: int | None = None


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model in memory."""

    name: str
    model: Transformer
    tokenizer: Tokenizer | None
    stop_ids: frozenset[int]
    seconds: float  # that loading took

    @property
    def config(self) -> ModelConfig:
        """The model's shape."""
        return self.model.config


def load(name: str | None, settings: Settings, placing: Placing) -> Job[LoadedModel]:
    """Find a MODEL and bring it to its device, telling which one was taken.

    Raises NotFoundError, CorruptError or UsageError like the parts that it is made of.
    """
    set_threads(placing.threads)
    device = pick_device(placing.device)
    watch = Stopwatch(device)
    with watch:
        found = resolve(name, settings)
        checkpoint = open_checkpoint(found.path)
        dtype = pick_dtype(placing.dtype, checkpoint.dtype, device)
        special = _special_tokens(checkpoint)
        tokenizer = open_tokenizer(found.path, special)
    yield Note(
        f"Model: {found.name} ({found.origin}), {checkpoint.n_params / 1e6:,.1f} M parameters, "
        f"{checkpoint.scheme} {dtype_name(dtype)} on {device}"
    )
    weights: dict[str, Weight] = {}
    done = 0
    for weight_name in weight_shapes(checkpoint.config):
        with watch:
            stored = checkpoint.weight(weight_name)
            weights[weight_name] = schemes[stored.scheme].to(stored, device, dtype)
        done += stored.n_bytes
        yield Progress("load", done, checkpoint.n_bytes, "bytes")
    model = Transformer(checkpoint.config, assemble(checkpoint.config, weights.__getitem__), Reference(), dtype)
    return LoadedModel(found.name, model, tokenizer, special.stop_ids, watch.seconds)


def _special_tokens(checkpoint: Checkpoint) -> SpecialTokens:
    """What the manifest says; for a folder without one, what its JSON files say."""
    entry = checkpoint.special_tokens
    if entry is None:
        return special_tokens(checkpoint.path)
    return SpecialTokens(entry.bos_id, entry.add_bos, frozenset(entry.stop_ids))
