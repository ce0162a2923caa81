"""What quantising does to a model's size: bytes before and after, by the parts of a model that have one storage."""

from collections.abc import Mapping
from dataclasses import dataclass

from gptfast_cli.core.checkpoints.checkpoint import Checkpoint
from gptfast_cli.core.checkpoints.contents import Contents
from gptfast_cli.core.model.weights import weight_shapes
from gptfast_cli.core.quant.allocation import Storage


@dataclass(frozen=True, slots=True)
class PartSize:
    """The embedding, the layers' matrices, the head, or the norms and biases; `scheme` is what they get."""

    part: str
    scheme: str
    n_params: int
    n_bytes_before: int
    n_bytes: int


def part_sizes(checkpoint: Checkpoint, contents: Contents, storages: Mapping[str, Storage]) -> tuple[PartSize, ...]:
    """The sizes of a model's parts, before and as they are planned, in the order in which a step reads them.

    Where layers have several schemes, those of each are a part.
    """
    sizes: dict[tuple[str, str], PartSize] = {}
    for name, shape in weight_shapes(checkpoint.config).items():
        part = _part(name, shape)
        n_params, n_bytes_before = 0, 0
        for piece in checkpoint.pieces(name):
            n_params += piece.tensor.numel()
            n_bytes_before += piece.tensor.nbytes
        scheme = str(storages[name])
        so_far = sizes.get((part, scheme), PartSize(part, scheme, 0, 0, 0))
        sizes[part, scheme] = PartSize(
            part,
            scheme,
            so_far.n_params + n_params,
            so_far.n_bytes_before + n_bytes_before,
            so_far.n_bytes + contents.weights[name].n_bytes,
        )
    return tuple(sizes.values())


def _part(name: str, shape: tuple[int, ...]) -> str:
    if len(shape) == 1:
        return "norms and biases"
    return name if name in ("embedding", "head") else "layers"
