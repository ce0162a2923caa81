"""Mixed precision: the scheme of each layer by minimum KLD within a size, or minimum size within a KLD."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

import torch

from gptfast_cli.core.checkpoints.checkpoint import Checkpoint
from gptfast_cli.core.errors import UsageError
from gptfast_cli.core.evals.divergence import BlockwiseKLD, Divergence
from gptfast_cli.core.evals.held_out import first_positions
from gptfast_cli.core.events import Job, Progress
from gptfast_cli.core.models.weights import layer_of, weight_blocks, weight_shapes
from gptfast_cli.core.quantize.allocation import (
    USUAL_ENDS,
    Allocation,
    AllocationOptions,
    Choice,
    Option,
    Storage,
    allocation_of,
    frontier,
    storage_of,
)
from gptfast_cli.core.quantize.model_quantizer import ModelQuantizer
from gptfast_cli.core.schemes import Weight
from gptfast_cli.core.schemes.plain import NAME as PLAIN

N_POSITIONS = 1024
"""Positions to measure at: enough to rank layers; each layer runs on all of them once for each scheme."""

CANDIDATES: Final = ("int4", "int8", PLAIN)
"""Schemes that a layer may get, the smallest first."""

_DTYPE = torch.float32  # rounding errors of bfloat16 arithmetic are as large as those of a layer in int8

_MARGIN = 0.95  # of the KLD that a choice may be predicted to cost, after one that came out higher


_Key: TypeAlias = tuple[int, Storage] | None
"""A variant to measure: one layer in a storage; None: embedding and head, or the whole model."""


@dataclass(frozen=True, slots=True)
class Goal:
    """Maximum size of the whole model, or its maximum KLD: exactly one of the two.

    n_bytes: of all weights
    kld:     mean KLD in nats on the measured text
    """

    n_bytes: int | None = None
    kld: float | None = None

    def check(self) -> None:
        """Raise UsageError for values out of range."""
        for option, value in (("--target-size", self.n_bytes), ("--target-kld", self.kld)):
            if value is not None and not value > 0:
                raise UsageError(f"{option} must be above 0.", "For example: --target-size 3.5, or --target-kld 0.01.")


@dataclass(frozen=True, slots=True)
class AllocationContext:
    """Texts, device and quantizer of the measurements.

    texts:    token ids, two or more each, of which the first N_POSITIONS positions are taken
    quantizer:  how integers are chosen; without a calibration, of which there would have to be one for each way
    """

    texts: Sequence[list[int]]
    device: torch.device
    quantizer: ModelQuantizer


@dataclass(frozen=True, slots=True)
class LayerChoice:
    """The storage of a layer, and the options that it was chosen from."""

    layer: int
    storage: Storage
    options: tuple[Option, ...]

    @property
    def scheme(self) -> str:
        """Name of the storage, such as int4-g32."""
        return str(self.storage)

    @property
    def klds(self) -> Mapping[Storage, float]:
        """KLD in nats of this layer alone in each storage."""
        return {option.storage: option.kld for option in self.options}

    @property
    def n_bytes(self) -> Mapping[Storage, int]:
        """Bytes in each storage."""
        return {option.storage: option.n_bytes for option in self.options}


@dataclass(frozen=True, slots=True)
class ChosenAllocation:
    """An allocation and its measurements, KLD in nats.

    options:       the options of each layer, with the KLD of that layer alone
    ends_kld:      KLD of the embedding and the head alone
    predicted_kld: sum of the KLDs of all parts
    measured_kld:  KLD of the whole, on the same text
    n_tokens:      measured positions
    """

    allocation: Allocation
    options: tuple[tuple[Option, ...], ...]
    ends_kld: float
    predicted_kld: float
    measured_kld: float
    n_tokens: int

    @property
    def layers(self) -> tuple[LayerChoice, ...]:
        """The choice of each layer."""
        return tuple(
            LayerChoice(layer, self.allocation.of_layer(layer), options) for layer, options in enumerate(self.options)
        )


def choose(
    checkpoint: Checkpoint, options: AllocationOptions, goal: Goal, context: AllocationContext
) -> Job[ChosenAllocation]:
    """Measure the KLD of each layer in each scheme, choose, and measure the KLD of the whole choice.

    Group size and schemes of embedding and head are those of `options`. If the measured KLD exceeds the goal although
    the predicted one does not, the next choice gets a smaller budget. Raises UsageError if the goal is out of reach.
    """
    goal.check()
    context = replace(context, texts=first_positions(iter(context.texts), N_POSITIONS))
    config = checkpoint.config
    candidates = [storage_of("--mode", scheme, options.group_size) for scheme in CANDIDATES]
    embedding, head = options.ends(config, USUAL_ENDS)
    of_ends = Allocation(Storage(PLAIN), embedding, head)
    klds, ends_kld = yield from _sensitivity(checkpoint, of_ends, candidates, context)
    ways = tuple(
        tuple(Option(at, _layer_bytes(checkpoint, layer, at), klds.get((layer, at), 0.0)) for at in candidates)
        for layer in range(config.n_layers)
    )
    ends_bytes = sum(_n_bytes(checkpoint, name, of_ends.storage(name, shape)) for name, shape in _ends(checkpoint))
    choices = [Choice(each.options, each.n_bytes + ends_bytes, each.kld + ends_kld) for each in frontier(ways)]
    allowed = goal.kld
    while True:
        choice = _best(choices, goal, allowed)
        allocation = allocation_of([option.storage for option in choice.options], embedding, head)
        measured = yield from _measured(checkpoint, allocation, context)
        if goal.kld is None or measured <= goal.kld:
            n_tokens = sum(len(text) - 1 for text in context.texts)
            return ChosenAllocation(allocation, ways, ends_kld, choice.kld, measured, n_tokens)
        allowed = _MARGIN * choice.kld * goal.kld / measured


def _best(choices: Sequence[Choice], goal: Goal, allowed: float | None) -> Choice:
    """The choice of least KLD within the size, or the smallest one within the KLD."""
    if goal.n_bytes is not None:
        within = [choice for choice in choices if choice.n_bytes <= goal.n_bytes]
        if not within:
            raise UsageError(
                f"--target-size {goal.n_bytes / 1e9:.6g}: the smallest choice takes {choices[0].n_bytes / 1e9:.6g} GB.",
                "Allow more, or try --head int4 --embeddings int4.",
            )
        return within[-1]
    assert allowed is not None
    enough = [choice for choice in choices if choice.kld <= allowed]
    if not enough:
        raise UsageError(
            f"--target-kld {goal.kld:.3g}: the embedding and the head alone come to {choices[-1].kld:.3g}.",
            "Allow more, or try --head plain --embeddings plain.",
        )
    return enough[0]


def _sensitivity(
    checkpoint: Checkpoint, of_ends: Allocation, candidates: Sequence[Storage], context: AllocationContext
) -> Job[tuple[Mapping[tuple[int, Storage], float], float]]:
    """KLD of each layer in each storage, and of the embedding and the head; all other weights unquantized."""
    uniform = [Allocation(storage, storage, storage) for storage in candidates if storage.scheme != PLAIN]

    def variants(names: tuple[str, ...]) -> Mapping[_Key, Allocation]:
        if names[0].startswith("layers."):
            return {(layer_of(names[0]), allocation.layers): allocation for allocation in uniform}
        return {None: of_ends}

    found = yield from _measure(checkpoint, variants, context, "measure layers")
    ends_kld = found.pop(None)
    return {key: kld for key, kld in found.items() if key is not None}, ends_kld


def _measured(checkpoint: Checkpoint, allocation: Allocation, context: AllocationContext) -> Job[float]:
    """KLD of the model in an allocation."""
    found = yield from _measure(checkpoint, lambda _: {None: allocation}, context, "measure the choice")
    return found[None]


def _measure(
    checkpoint: Checkpoint,
    variants: Callable[[tuple[str, ...]], Mapping[_Key, Allocation]],
    context: AllocationContext,
    task: str,
) -> Job[dict[_Key, float]]:
    """Mean KLD in nats of each variant; `variants` returns the allocations that apply to a block of weights."""
    kld = BlockwiseKLD[_Key](checkpoint.config, context.texts, device=context.device, dtype=_DTYPE)
    blocks = weight_blocks(checkpoint.config)
    found: dict[_Key, Divergence] = {}
    for number, names in enumerate(blocks):
        yield Progress(task, number, len(blocks), "blocks")
        block = {name: checkpoint.weight(name) for name in names}
        quantized = {key: _quantize_block(block, each, context) for key, each in variants(names).items()}
        found = kld.add(block, quantized)
    yield Progress(task, len(blocks), len(blocks), "blocks")
    return {key: divergence.kld_mean for key, divergence in found.items()}


def _quantize_block(
    block: Mapping[str, Weight], allocation: Allocation, context: AllocationContext
) -> dict[str, Weight]:
    def quantize(name: str, weight: Weight) -> Weight:
        storage = allocation.storage(name, weight.shape)
        if storage.scheme == PLAIN:
            return weight
        (matrix,) = weight.parts.values()
        return context.quantizer.quantize(name, matrix, storage)

    return {name: quantize(name, weight) for name, weight in block.items()}


def _layer_bytes(checkpoint: Checkpoint, layer: int, storage: Storage) -> int:
    shapes = weight_shapes(checkpoint.config)
    names = weight_blocks(checkpoint.config)[1 + layer]
    by_name = {name: storage.fitted(shapes[name]) if len(shapes[name]) > 1 else Storage(PLAIN) for name in names}
    return sum(_n_bytes(checkpoint, name, at) for name, at in by_name.items())


def _ends(checkpoint: Checkpoint) -> list[tuple[str, tuple[int, ...]]]:
    return [(name, shape) for name, shape in weight_shapes(checkpoint.config).items() if not name.startswith("layers.")]


def _n_bytes(checkpoint: Checkpoint, name: str, storage: Storage) -> int:
    if storage.scheme == PLAIN:
        return sum(piece.tensor.nbytes for piece in checkpoint.tensors(name))
    return storage.meta_weight(weight_shapes(checkpoint.config)[name]).n_bytes
