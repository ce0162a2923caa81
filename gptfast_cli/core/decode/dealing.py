"""Whether a model can be dealt out to ranks: seen from its shape and its storage, before any of it is read."""

from collections.abc import Callable, Mapping

from gptfast_cli.core.config import ModelConfig
from gptfast_cli.core.formats.plain import NAME as PLAIN
from gptfast_cli.core.model.share import Share, check_divides
from gptfast_cli.core.model.weights import weight_shapes
from gptfast_cli.core.quant.allocation import Storage

Storages = Callable[[], Mapping[str, Storage]]
"""Tells the storage of every weight by its name."""


def check_dealt(config: ModelConfig, storages: Storages, size: int) -> None:
    """Raise UsageError where a model of this shape, so stored, cannot be dealt out to so many ranks."""
    if size == 1:
        return
    check_divides(config, size)
    shapes = weight_shapes(config)
    kinds = {(name.rpartition(".")[2], storage): name for name, storage in storages().items()}  # one layer for all
    for (_, storage), name in kinds.items():
        if storage.scheme == PLAIN:
            continue
        for rank in range(size):
            block = Share(config, rank, size).block(name)
            if block is not None:
                storage.outline(shapes[name]).block(block)
