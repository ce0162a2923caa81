"""Which scheme each weight of a model gets: the layers one, the embedding and the head another where that is better.

Norms and biases stay as they are: they are a thousandth of the bytes, and every activation passes through them. The
embedding and the head are 8 bits wide unless told otherwise, also where the layers have 4: a head's errors go
straight into the logits.
"""

import difflib
from dataclasses import dataclass, replace

from gptfast_cli.core.config import ModelConfig
from gptfast_cli.core.errors import UsageError
from gptfast_cli.core.formats import QuantizedScheme, Weight, quantized, schemes
from gptfast_cli.core.formats.plain import NAME as PLAIN
from gptfast_cli.core.model.weights import weight_shapes

DEFAULT_GROUP_SIZE = 32
_ENDS = "int8"


@dataclass(frozen=True, slots=True)
class Storage:
    """How a matrix is to be stored; `group_size` is one of the scheme's, or None where it has none."""

    scheme: str
    group_size: int | None = None

    def __str__(self) -> str:
        return self.scheme if self.group_size is None else f"{self.scheme}-g{self.group_size}"

    def outline(self, shape: tuple[int, ...]) -> Weight:
        """A matrix of this shape without its numbers, on the meta device; of a quantised scheme."""
        return quantized(self.scheme).outline(shape, self.group_size)


@dataclass(frozen=True, slots=True)
class Allocation:
    """The storage of a model's matrices; with tied embeddings `embedding` and `head` are the same."""

    layers: Storage
    embedding: Storage
    head: Storage

    def __str__(self) -> str:
        """Short and unmistakable, as in the name of a checkpoint: `int4-g32`, `int4-g32-head-plain`."""
        usual = Storage(_usual_ends(self.layers.scheme))
        ends = (("embeddings", self.embedding), ("head", self.head))
        return "-".join([str(self.layers), *(f"{end}-{at}" for end, at in ends if at != usual)])

    def storage(self, name: str, shape: tuple[int, ...]) -> Storage:
        """The storage of a weight by its name, as in `weight_shapes`."""
        if len(shape) == 1:
            return Storage(PLAIN)
        return {"embedding": self.embedding, "head": self.head}.get(name, self.layers)

    def of(self, config: ModelConfig) -> dict[str, Storage]:
        """The storage of every weight of a model, in reading order."""
        return {name: self.storage(name, shape) for name, shape in weight_shapes(config).items()}


@dataclass(frozen=True, slots=True)
class AllocationOptions:
    """An allocation as a person asks for it.

    mode:       scheme of the layers
    group_size: None takes 32, where the scheme has groups
    head, embeddings: their schemes; None takes int8, or `mode` where that is plain
    """

    mode: str
    group_size: int | None = None
    head: str | None = None
    embeddings: str | None = None

    def allocation(self, config: ModelConfig) -> Allocation:
        """What that means for a model; raises UsageError for what cannot be."""
        wanted = self._tied() if config.tied_embeddings else self
        usual = _usual_ends(self.mode)
        named = {"--mode": self.mode, "--embeddings": wanted.embeddings or usual, "--head": wanted.head or usual}
        layers, embedding, head = (_storage(option, name, self.group_size) for option, name in named.items())
        if self.group_size is not None and all(at.group_size is None for at in (layers, embedding, head)):
            raise UsageError(f"{self.mode} has no groups, so --groupsize says nothing.", "Leave out --groupsize.")
        return Allocation(layers, embedding, head)

    def _tied(self) -> "AllocationOptions":
        """Both ends alike, as they are one matrix."""
        if self.head and self.embeddings and self.head != self.embeddings:
            raise UsageError(
                f"--head {self.head} and --embeddings {self.embeddings} contradict each other: the model has one "
                "matrix for both.",
                "Give one of them.",
            )
        either = self.head or self.embeddings
        return replace(self, head=either, embeddings=either)


def _usual_ends(mode: str) -> str:
    """Scheme of the embedding and the head where nobody chose one."""
    return PLAIN if mode == PLAIN else _ENDS


def _storage(option: str, scheme: str, group_size: int | None) -> Storage:
    if scheme not in schemes:
        nearest = difflib.get_close_matches(scheme, schemes)
        meant = f"Did you mean {nearest[0]}? " if nearest else ""
        raise UsageError(f"{option}: there is no scheme called {scheme!r}.", f"{meant}Schemes: {', '.join(schemes)}.")
    plug = schemes[scheme]
    sizes = plug.group_sizes if isinstance(plug, QuantizedScheme) else ()
    if not sizes:
        return Storage(scheme)
    size = DEFAULT_GROUP_SIZE if group_size is None else group_size
    if size not in sizes:
        raise UsageError(
            f"--groupsize {size}: {scheme} has groups of {_listed(sizes)} elements.", f"Take --groupsize {sizes[0]}."
        )
    return Storage(scheme, size)


def _listed(sizes: tuple[int, ...]) -> str:
    *first, last = map(str, sizes)
    return f"{', '.join(first)} or {last}" if first else last
