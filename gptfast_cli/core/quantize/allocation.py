"""Allocation: the scheme and group size of each weight, and the Pareto frontier of mixed-precision allocations.

Norms and biases stay plain (unquantized): they are about 0.1 % of the bytes, and every activation passes through them.
The embedding and the head are int8 by default, even with int4 layers: errors of the head directly change the logits.

The predicted KLD of a choice is the sum of the KLDs of its layers, each measured with all other layers unquantized:
KLD grows with the square of small errors, and errors of different layers are nearly uncorrelated (HAWQ-V3, Yao et al.
2021, arXiv:2011.10680, minimizes such a sum). The KLD of the chosen model as a whole is measured afterwards.
"""

import difflib
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import torch

from gptfast_cli.core.config import ModelConfig
from gptfast_cli.core.errors import UsageError
from gptfast_cli.core.models.weights import layer_of, weight_shapes
from gptfast_cli.core.schemes import Weight, quantized, quantized_names, schemes
from gptfast_cli.core.schemes.plain import NAME as PLAIN
from gptfast_cli.core.schemes.plain import plain

DEFAULT_GROUP_SIZE = 32
USUAL_ENDS = "int8"
_CHOICE: Final = re.compile(r"\s*(?:\*|(?P<first>\d+)(?:-(?P<last>\d+))?)\s*=\s*(?P<storage>\S+)\s*")


@dataclass(frozen=True, slots=True)
class Storage:
    """Scheme and group size of a matrix; `group_size` is None for a scheme without groups."""

    scheme: str
    group_size: int | None = None

    def __str__(self) -> str:
        return self.scheme if self.group_size is None else f"{self.scheme}-g{self.group_size}"

    def fitted(self, shape: tuple[int, ...]) -> "Storage":
        """The same scheme with the group size <= `group_size` that takes the fewest bytes for a matrix of this shape.

        The last group of a row is padded: 320 columns in groups of 128 take the bytes of 384.
        """
        if self.group_size is None:
            return self
        sizes = [size for size in quantized(self.scheme).group_sizes if size <= self.group_size]
        candidates = [replace(self, group_size=size) for size in sorted(sizes, reverse=True)]
        return min(candidates, key=lambda storage: storage.meta_weight(shape).n_bytes)

    def meta_weight(self, shape: tuple[int, ...]) -> Weight:
        """A quantized matrix of this shape, on the meta device."""
        return quantized(self.scheme).meta_weight(shape, self.group_size)

    def outline(self, shape: tuple[int, ...], dtype: torch.dtype) -> Weight:
        """A weight of this shape without its numbers, on the meta device; `dtype`: of a plain one."""
        if self.scheme == PLAIN:
            return plain(torch.empty(shape, dtype=dtype, device="meta"))
        return self.meta_weight(shape)

    def n_bytes(self, shape: tuple[int, ...], itemsize: int) -> int:
        """Bytes of a weight of this shape; `itemsize`: bytes per element of a plain weight."""
        return itemsize * math.prod(shape) if self.scheme == PLAIN else self.meta_weight(shape).n_bytes


@dataclass(frozen=True, slots=True)
class Allocation:
    """The storage of a model's matrices; with tied embeddings `embedding` and `head` are equal.

    layers: storage of the decoder layers, except those in `others`
    others: storage by layer index, from 0
    """

    layers: Storage
    embedding: Storage
    head: Storage
    others: Mapping[int, Storage] = field(default_factory=dict)

    def __str__(self) -> str:
        """Short form, used in checkpoint names: `int4-g32`, `int4-g32-4-layers-int8`, `int4-g32-head-plain`."""
        usual = Storage(_usual_ends(self.layers.scheme))
        ends = (("embeddings", self.embedding), ("head", self.head))
        counts = Counter(self.others[layer] for layer in sorted(self.others))
        some = (f"{n}-layer{'s' if n > 1 else ''}-{at}" for at, n in counts.items())
        return "-".join([str(self.layers), *some, *(f"{end}-{at}" for end, at in ends if at != usual)])

    def of_layer(self, layer: int) -> Storage:
        return self.others.get(layer, self.layers)

    def storage(self, name: str, shape: tuple[int, ...]) -> Storage:
        """Storage of a weight (a name of `weight_shapes`), the group size fitted to its shape; vectors are plain."""
        return Storage(PLAIN) if len(shape) == 1 else self._wanted(name).fitted(shape)

    def of(self, config: ModelConfig) -> dict[str, Storage]:
        """The storage of every weight of a model by name, in the order of `weight_shapes`."""
        return {name: self.storage(name, shape) for name, shape in weight_shapes(config).items()}

    def outline(self, config: ModelConfig, dtype: torch.dtype) -> dict[str, Weight]:
        """Every weight of a model by name, on the meta device; `dtype`: of plain ones."""
        shapes = weight_shapes(config)
        return {name: storage.outline(shapes[name], dtype) for name, storage in self.of(config).items()}

    def smaller_groups(self, config: ModelConfig) -> dict[int, Storage]:
        """Storage by number of columns, for matrices that get smaller groups than requested."""
        shapes = {name: shape for name, shape in weight_shapes(config).items() if len(shape) > 1}
        fitted = {name: self.storage(name, shape) for name, shape in shapes.items()}
        return {shapes[name][1]: at for name, at in fitted.items() if at != self._wanted(name)}

    def _wanted(self, name: str) -> Storage:
        """The requested storage, before the group size is fitted to the shape."""
        ends = {"embedding": self.embedding, "head": self.head}
        return ends[name] if name in ends else self.of_layer(layer_of(name))


@dataclass(frozen=True, slots=True)
class AllocationOptions:
    """An allocation as requested on the command line.

    mode:       scheme of the decoder layers
    group_size: columns of a group; None = 32 for schemes with groups
    head, embeddings: schemes; None = int8, or plain if `mode` is plain
    layers:     schemes by layer, in the syntax of `parse_layers`
    """

    mode: str
    group_size: int | None = None
    head: str | None = None
    embeddings: str | None = None
    layers: str | None = None

    def allocation(self, config: ModelConfig) -> Allocation:
        """The allocation for a model. Raises UsageError for options that conflict with each other or the model."""
        mode = storage_of("--mode", self.mode, self.group_size)
        by_layer = [mode] * config.n_layers
        if self.layers is not None:
            by_layer = parse_layers(self.layers, by_layer, self.group_size)
        embedding, head = self.ends(config, _usual_ends(_most(by_layer).scheme))
        if self.group_size is not None and all(at.group_size is None for at in (*by_layer, embedding, head)):
            raise UsageError(f"--groupsize has no effect: {mode} has no groups.", "Leave out --groupsize.")
        return allocation_of(by_layer, embedding, head)

    def ends(self, config: ModelConfig, usual: str) -> tuple[Storage, Storage]:
        """(embedding, head) storage; `usual` is the default scheme."""
        wanted = self._tied() if config.tied_embeddings else self
        named = {"--embeddings": wanted.embeddings or usual, "--head": wanted.head or usual}
        embedding, head = (storage_of(option, name, self.group_size) for option, name in named.items())
        return embedding, head

    def _tied(self) -> "AllocationOptions":
        """The same options with one scheme for the embedding and the head, which are one matrix if tied."""
        if self.head and self.embeddings and self.head != self.embeddings:
            raise UsageError(
                f"--head {self.head} conflicts with --embeddings {self.embeddings}: the embedding and the head of this "
                "model are tied (one matrix).",
                "Give one of the two options.",
            )
        either = self.head or self.embeddings
        return replace(self, head=either, embeddings=either)


def _usual_ends(mode: str) -> str:
    """Default scheme of the embedding and the head."""
    return PLAIN if mode == PLAIN else USUAL_ENDS


def allocation_of(by_layer: Sequence[Storage], embedding: Storage, head: Storage) -> Allocation:
    """The allocation from the storage of each decoder layer, the embedding and the head."""
    layers = _most(by_layer)
    others = {layer: storage for layer, storage in enumerate(by_layer) if storage != layers}
    return Allocation(layers, embedding, head, others)


def _most(by_layer: Sequence[Storage]) -> Storage:
    """The most common storage; on a tie, the one that comes first."""
    return Counter(by_layer).most_common(1)[0][0]


def storage_of(option: str, text: str, group_size: int | None) -> Storage:
    """Parse a storage such as `int4` or `int4-g64`. Raises UsageError; the message names `option`.

    group_size: for a text without one; None = 32 for schemes with groups
    """
    scheme, dash, own_size = text.partition("-g")
    known = [*quantized_names(), PLAIN]
    if scheme not in known or (dash and not own_size.isdecimal()):
        nearest = difflib.get_close_matches(scheme, known)
        meant = f"Did you mean {nearest[0]}? " if nearest else ""
        raise UsageError(f"{option}: there is no scheme called {text!r}.", f"{meant}Schemes: {', '.join(known)}.")
    sizes = schemes[scheme].group_sizes
    if not sizes:
        if dash:
            raise UsageError(f"{option}: {scheme} has no groups, so {text!r} is invalid.", f"Write {scheme}.")
        return Storage(scheme)
    size = int(own_size) if dash else DEFAULT_GROUP_SIZE if group_size is None else group_size
    if size not in sizes:
        raise UsageError(
            f"--groupsize {size}: {scheme} has groups of {_listed(sizes)} elements.", f"Take --groupsize {sizes[0]}."
        )
    return Storage(scheme, size)


def parse_layers(text: str, usual: Sequence[Storage], group_size: int | None) -> list[Storage]:
    """Parse --layers, such as `0-3=int8,*=int4`, into the storage of each layer; `*` means all other layers.

    usual: default storage of each layer
    Raises UsageError for invalid syntax, a layer named twice, or a layer out of range.
    """
    by_layer: dict[int, Storage] = {}
    rest = None
    for entry in text.split(","):
        match = _CHOICE.fullmatch(entry)
        if match is None:
            raise UsageError(f"--layers: cannot parse {entry!r}.", "Write --layers '0-3=int8,*=int4'.")
        storage = storage_of("--layers", match["storage"], group_size)
        if match["first"] is None:
            if rest is not None:
                raise UsageError("--layers: * is named twice.", "Name it once.")
            rest = storage
            continue
        first, last = int(match["first"]), int(match["last"] or match["first"])
        if not first <= last < len(usual):
            raise UsageError(
                f"--layers: {entry!r} names layers that the model does not have.",
                f"It has {len(usual)} layers, from 0 to {len(usual) - 1}.",
            )
        for layer in range(first, last + 1):
            if layer in by_layer:
                raise UsageError(f"--layers: layer {layer} is named twice.", "Name each layer once.")
            by_layer[layer] = storage
    return [by_layer.get(layer, rest or usual[layer]) for layer in range(len(usual))]


def _listed(sizes: tuple[int, ...]) -> str:
    *first, last = map(str, sizes)
    return f"{', '.join(first)} or {last}" if first else last


@dataclass(frozen=True, slots=True)
class Option:
    """One storage of a layer: its bytes, and the KLD in nats with all other layers unquantized."""

    storage: Storage
    n_bytes: int
    kld: float


@dataclass(frozen=True, slots=True)
class Choice:
    """One option per layer; `n_bytes` and `kld` are sums over the layers."""

    options: tuple[Option, ...]
    n_bytes: int
    kld: float


def frontier(layers: Sequence[Sequence[Option]]) -> list[Choice]:
    """The exact Pareto frontier in bytes and KLD, by ascending bytes; one option is chosen per layer.

    Dynamic programming over the layers. Layers of one shape have equal bytes, so few distinct sums are kept.
    """
    kept = [Choice((), 0, 0.0)]
    for options in layers:
        grown = (
            Choice((*choice.options, option), choice.n_bytes + option.n_bytes, choice.kld + option.kld)
            for choice in kept
            for option in options
        )
        kept = list(_unbeaten(grown))
    return kept


def _unbeaten(choices: Iterable[Choice]) -> Iterable[Choice]:
    lowest = float("inf")
    for choice in sorted(choices, key=lambda choice: (choice.n_bytes, choice.kld)):
        if choice.kld < lowest:
            lowest = choice.kld
            yield choice
