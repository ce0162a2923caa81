"""Loading a model: a checkpoint by its MODEL name, or a shape with random weights.

Random quantized weights are generated in blocks of rows, directly as codes and scales, without a full-precision copy.
Elements have mean 0 (or half a quantization step) and variance 1 / in_features, which keeps activations in range.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from gptfast_cli.core.backends.base import Backend, phase
from gptfast_cli.core.checkpoints.checkpoint import Checkpoint, outline_of
from gptfast_cli.core.checkpoints.reader import open_checkpoint
from gptfast_cli.core.checkpoints.resolve import Resolved, resolve
from gptfast_cli.core.config import ModelConfig
from gptfast_cli.core.device import computing_name, pick_device, pick_dtype, pick_kv_dtype, set_threads
from gptfast_cli.core.engine.build import ModelSource, RuntimeConfig, build
from gptfast_cli.core.engine.request import Limits, stop_token_ids
from gptfast_cli.core.engine.sampling import uniform
from gptfast_cli.core.engine.shapes import Shape
from gptfast_cli.core.errors import UsageError
from gptfast_cli.core.events import Job, Note
from gptfast_cli.core.models.decoder import Decoder
from gptfast_cli.core.models.weights import VOCABULARY_WEIGHTS, weight_shapes
from gptfast_cli.core.quantities import count
from gptfast_cli.core.quantize.allocation import Allocation, AllocationOptions, Storage
from gptfast_cli.core.quantize.quantizers import in_row_blocks
from gptfast_cli.core.schemes import WHOLE, Block, QuantizedScheme, Weight, quantized
from gptfast_cli.core.schemes.plain import NAME as PLAIN
from gptfast_cli.core.schemes.plain import plain
from gptfast_cli.core.settings import Settings
from gptfast_cli.core.stopwatch import Stopwatch
from gptfast_cli.core.token_ids import check_token_ids
from gptfast_cli.core.tokenizers import SpecialTokens, Tokenizer, open_tokenizer, special_tokens, tokenizer_folder


@dataclass(frozen=True, slots=True)
class OpenedModel:
    """A resolved and opened checkpoint, weights not read yet.

    config:           its shape, without vocabulary padding unless that was asked for
    tokenizer_folder: folder of its tokenizer and chat templates
    seconds:          time to open it
    """

    found: Resolved
    checkpoint: Checkpoint
    special: SpecialTokens
    tokenizer: Tokenizer | None
    config: ModelConfig
    tokenizer_folder: Path
    seconds: float

    @property
    def n_bytes(self) -> int:
        """Bytes of all weights as stored, without padding rows."""
        if self.config == self.checkpoint.config:
            return self.checkpoint.n_bytes
        names = [name for name in VOCABULARY_WEIGHTS if name in weight_shapes(self.config)]
        return self.checkpoint.n_bytes - sum(
            self.checkpoint.weight(name).n_bytes - self.read(name).n_bytes for name in names
        )

    def read(self, name: str, block: Block | None = None) -> Weight:
        """Read a weight, or a block of it, without padding rows."""
        n_tokens = self.config.vocab_size
        if name not in VOCABULARY_WEIGHTS or n_tokens == self.checkpoint.config.vocab_size:
            return self.checkpoint.weight(name, block)
        without_padding = Block(rows=(slice(0, n_tokens),))
        if block is None:
            return self.checkpoint.weight(name).block(without_padding)
        return self.checkpoint.weight(name, without_padding if block == WHOLE else block)


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model in memory: a checkpoint, or a shape with random weights.

    name:       the requested MODEL or SHAPE
    runtime:    device, dtype and backend as requested
    seconds:    time to open and load it, or to generate its weights
    opened:     its checkpoint; None for random weights
    allocation: schemes of random weights; None for a checkpoint
    """

    name: str
    model: Decoder
    runtime: RuntimeConfig
    seconds: float
    opened: OpenedModel | None = None
    allocation: Allocation | None = None

    @property
    def is_random(self) -> bool:
        """Whether its weights are random; then it has neither files nor a tokenizer."""
        return self.opened is None

    @property
    def checkpoint(self) -> Checkpoint:
        """Its files; not for random weights."""
        assert self.opened is not None, "random weights have no checkpoint"
        return self.opened.checkpoint

    @property
    def path(self) -> Path:
        """Its folder or file; not for random weights."""
        return self.checkpoint.path

    @property
    def tokenizer_folder(self) -> Path:
        """The folder of its tokenizer and chat templates; not for random weights."""
        assert self.opened is not None, "random weights have no tokenizer"
        return self.opened.tokenizer_folder

    @property
    def tokenizer(self) -> Tokenizer | None:
        """None for random weights, and for a checkpoint without a tokenizer."""
        return None if self.opened is None else self.opened.tokenizer

    @property
    def stop_ids(self) -> frozenset[int]:
        """End-of-text tokens."""
        return frozenset() if self.opened is None else self.opened.special.stop_ids

    @property
    def config(self) -> ModelConfig:
        """Shape of the model."""
        return self.model.config

    @property
    def scheme(self) -> str:
        """Scheme of most parameters."""
        return str(self.allocation) if self.opened is None else self.checkpoint.scheme

    @property
    def head_scheme(self) -> str:
        """Scheme of the output layer, which is the embedding where both are tied."""
        if self.opened is None:
            assert self.allocation is not None
            return self.allocation.head.scheme
        return self.checkpoint.weight("embedding" if self.config.tied_embeddings else "head").scheme

    @property
    def n_params(self) -> int:
        """Number of parameters; a tied head counts once."""
        return self.config.n_params

    def check_ids(self, ids: Sequence[int]) -> None:
        """Raise TokenIdError for the first id outside of the embedding."""
        check_token_ids(ids, self.config.vocab_size, self.tokenizer.vocabulary.token_of if self.tokenizer else None)

    def limits(
        self,
        max_new_tokens: int | None,
        max_context: int | None,
        *,
        ignore_eos: bool = False,
        stop: Sequence[str] = (),
        turn_end_ids: frozenset[int] = frozenset(),
    ) -> Limits:
        """Limits of a sequence; `max_context` None is the model's own, `max_new_tokens` None is all of the context.

        Stop tokens are the model's end tokens and `turn_end_ids`, unless `ignore_eos`, and special tokens among the
        stop strings. Raises UsageError if `max_context` exceeds the model's.
        """
        holds, longest = self.config.max_context, self.config.longest_context
        if max_context is not None and max_context > holds:
            raise UsageError(f"--max-context {max_context} exceeds the context of {self.name}, {longest} tokens.")
        possible = range(self.config.vocab_size)  # larger ids can never be sampled
        end_ids = frozenset() if ignore_eos else (self.stop_ids | turn_end_ids).intersection(possible)
        named = stop_token_ids(stop, self.tokenizer).intersection(possible)
        most = max_context or holds
        return Limits(max_new_tokens or most, most, end_ids | named, named - end_ids, longest)


def open_model(name: str | None, settings: Settings, *, with_padding: bool = False) -> OpenedModel:
    """Resolve a MODEL and open its files.

    Vocabularies are often padded to a round size. Rows of the embedding and the head for ids that the tokenizer does
    not know are untrained, and left out unless `with_padding`, so that no backend samples them.
    Raises NotFoundError, CorruptError or UsageError.
    """
    watch = Stopwatch(torch.device("cpu"))
    with watch, phase("load"):
        found = resolve(name, settings)
        checkpoint = open_checkpoint(found.path)
        folder = tokenizer_folder(checkpoint.path, settings.home)
        special = special_tokens_of(checkpoint, folder)
        tokenizer = open_tokenizer(folder, special, n_embeddings=checkpoint.config.vocab_size)
    config = checkpoint.config
    if tokenizer is not None and not with_padding:
        config = replace(config, vocab_size=min(config.vocab_size, _n_known_tokens(tokenizer)))
    return OpenedModel(found, checkpoint, special, tokenizer, config, folder, watch.seconds)


def _n_known_tokens(tokenizer: Tokenizer) -> int:
    """One more than the largest id known to the tokenizer or to the files beside it."""
    return 1 + max(tokenizer.vocab_size - 1, tokenizer.bos_id or 0, *tokenizer.stop_ids)


def load(
    model: str | OpenedModel | None,
    settings: Settings,
    runtime: RuntimeConfig,
    torch_backend: Backend | None = None,
    *,
    role: str = "Model",
) -> Job[LoadedModel]:
    """Load a MODEL, or an opened one, onto its device; notes its name, size, dtype and `role`.

    `torch_backend` as in `build`. Raises NotFoundError, CorruptError or UsageError.
    """
    set_threads(runtime.threads)
    device = pick_device(runtime.device)
    opened = model if isinstance(model, OpenedModel) else open_model(model, settings)
    checkpoint = opened.checkpoint
    dtype = pick_dtype(runtime.dtype, checkpoint.dtype, device)
    stored_as = checkpoint.stored_as if checkpoint.stored_as == checkpoint.scheme else f"{checkpoint.stored_as};"
    yield Note(
        f"{role}: {opened.found.name} ({opened.found.origin}), {count(checkpoint.n_params)} parameters, "
        f"{stored_as} {computing_name(dtype, pick_kv_dtype(runtime.kv_dtype, dtype))} on {device}"
    )
    yield from map(Note, checkpoint.notes)
    if runtime.verify:
        yield from checkpoint.verify()
    config = opened.config.for_context(runtime.max_context)
    if config.max_context > opened.config.max_context:
        yield Note(f"LongRoPE with the factors of texts over {opened.config.max_context:,} tokens, for all texts")
    source = ModelSource(config, opened.read, partial(outline_of, checkpoint), opened.n_bytes, device, dtype)
    watch = Stopwatch(device)
    built = yield from build(source, runtime, settings=settings, watch=watch, torch_backend=torch_backend)
    return LoadedModel(opened.found.name, built, runtime, opened.seconds + watch.seconds, opened)


def special_tokens_of(checkpoint: Checkpoint, folder: Path) -> SpecialTokens:
    """Special tokens of the manifest or, without a manifest, of the JSON files in the tokenizer's folder."""
    entry = checkpoint.special_tokens
    if entry is None:
        return special_tokens(folder)
    return SpecialTokens(entry.bos_id, entry.add_bos, frozenset(entry.stop_ids))


_BIAS_SIZE = 0.02


class RandomWeights:
    """Random weights of a shape on a device, plain ones in `dtype`; deterministic for a seed and a device."""

    def __init__(
        self, config: ModelConfig, allocation: Allocation, *, device: torch.device, dtype: torch.dtype, seed: int
    ) -> None:
        self._shapes = weight_shapes(config)
        self._seeds = {name: int(uniform(seed, index, 0) * 2**32) for index, name in enumerate(self._shapes)}
        self._allocation, self._device, self._dtype = allocation, device, dtype

    def read(self, name: str, block: Block | None = None) -> Weight:
        """Generate a weight, or a block of it; repeated calls return the same values."""
        shape, generator = self._shapes[name], torch.Generator(self._device).manual_seed(self._seeds[name])
        if len(shape) == 1:
            vector = plain(_vector(shape, generator, dtype=self._dtype, is_norm=not name.endswith("_bias")))
            return vector if block is None else vector.block(block)
        storage = self._allocation.storage(name, shape)
        matrix = random_matrix(storage, shape, generator, dtype=self._dtype)
        return matrix if block is None else matrix.block(block)


def planned_bytes(config: ModelConfig, allocation: Allocation, dtype: torch.dtype) -> int:
    """Bytes of all weights that `RandomWeights` generates."""
    return sum(weight.n_bytes for weight in allocation.outline(config, dtype).values())


def random_matrix(
    storage: Storage,
    shape: tuple[int, ...],
    generator: torch.Generator,
    *,
    dtype: torch.dtype,
    block_elements: int = 1 << 23,
) -> Weight:
    """A random matrix [out_features, in_features] in a storage scheme, on the generator's device.

    block_elements: elements of a quantized matrix drawn at a time
    """
    in_features = shape[1]
    bound = math.sqrt(3 / in_features)  # uniform over -bound..bound has variance bound^2 / 3 = 1 / in_features
    if storage.scheme == PLAIN:
        matrix = torch.empty(shape, dtype=dtype, device=generator.device)
        return plain(matrix.uniform_(-bound, bound, generator=generator))
    scheme, group_size = quantized(storage.scheme), storage.group_size or in_features

    def make(rows: slice) -> Weight:
        return _quantized_rows(scheme, (rows.stop - rows.start, in_features), group_size, generator, bound=bound)

    return in_row_blocks(storage.meta_weight(shape), make, device=generator.device, block_elements=block_elements)


def _quantized_rows(
    scheme: QuantizedScheme, shape: tuple[int, int], group_size: int, generator: torch.Generator, *, bound: float
) -> Weight:
    n_rows, in_features = shape
    n_groups = -(-in_features // group_size)
    ends = torch.tensor([-bound, bound], device=generator.device).expand(n_rows, n_groups, 2)
    params = scheme.fitter(ends.flatten(1)).fit(ends)
    codes = torch.randint(
        params.lowest,
        params.highest + 1,
        (n_rows, n_groups, group_size),
        dtype=torch.int8,
        generator=generator,
        device=generator.device,
    )
    if n_over := n_groups * group_size - in_features:
        codes[:, -1, -n_over:] = params.encode(torch.zeros_like(ends[..., :1]))[:, -1]
    return scheme.pack(codes, params, in_features)


def _vector(shape: tuple[int, ...], generator: torch.Generator, *, dtype: torch.dtype, is_norm: bool) -> Tensor:
    """A norm's weights around 1, or a bias around 0."""
    values = torch.empty(shape, device=generator.device)
    values.uniform_(0.9, 1.1, generator=generator) if is_norm else values.normal_(std=_BIAS_SIZE, generator=generator)
    return values.to(dtype)


RANDOM_DTYPE = torch.bfloat16
"""Stored dtype assumed of a shape: that of nearly all published models."""


def load_random(
    shape: Shape,
    options: AllocationOptions,
    runtime: RuntimeConfig,
    *,
    seed: int,
    settings: Settings,
    torch_backend: Backend | None,
) -> Job[LoadedModel]:
    """Generate a model of a shape with random weights. Raises UsageError for an unknown scheme, device or dtype."""
    set_threads(runtime.threads)
    device = pick_device(runtime.device)
    dtype = pick_dtype(runtime.dtype, RANDOM_DTYPE, device)
    allocation = options.allocation(shape.config)
    yield Note(
        f"Model: {shape.name} (random weights), {count(shape.config.n_params)} parameters, "
        f"{allocation} {computing_name(dtype, pick_kv_dtype(runtime.kv_dtype, dtype))} on {device}"
    )
    weights = RandomWeights(shape.config, allocation, device=device, dtype=dtype, seed=seed)
    outline = partial(allocation.outline, shape.config, dtype)
    n_bytes = planned_bytes(shape.config, allocation, dtype)
    source = ModelSource(shape.config, weights.read, outline, n_bytes, device, dtype)
    watch = Stopwatch(device)
    model = yield from build(source, runtime, settings=settings, watch=watch, torch_backend=torch_backend)
    return LoadedModel(shape.name, model, runtime, watch.seconds, allocation=allocation)
