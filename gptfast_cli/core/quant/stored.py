"""How a checkpoint stores its weights, in the words in which one is asked for; none of their numbers are read."""

from gptfast_cli.core.checkpoints.checkpoint import Checkpoint
from gptfast_cli.core.device import DTYPES
from gptfast_cli.core.formats import Weight, is_like, quantized
from gptfast_cli.core.formats.plain import NAME as PLAIN
from gptfast_cli.core.model.weights import weight_shapes
from gptfast_cli.core.quant.allocation import Storage


def stored(checkpoint: Checkpoint) -> dict[str, Storage]:
    """The storage of every weight by its name, in reading order."""
    return {name: _storage(checkpoint, name) for name in weight_shapes(checkpoint.config)}


def _storage(checkpoint: Checkpoint, name: str) -> Storage:
    # a plain weight is told by its dtypes: another program's would have to be read and put together
    if set(checkpoint.dtypes(name)) <= set(DTYPES.values()):
        return Storage(PLAIN)
    weight = checkpoint.weight(name)
    return Storage(weight.scheme, _group_size(weight))


def _group_size(weight: Weight) -> int | None:
    scheme = quantized(weight.scheme)
    return next(
        (size for size in scheme.group_sizes if is_like(weight, scheme.outline(weight.shape, size))),
        None,
    )
