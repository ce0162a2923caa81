"""A checkpoint's weights in a file: some of them, one after the other, of which one is held at a time."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from torch import Tensor

from gptfast_cli.core.checkpoints.contents import PlannedWeight
from gptfast_cli.core.checkpoints.manifest import StoredPart, StoredWeight, tensor_name
from gptfast_cli.core.checkpoints.shard_writer import PlannedTensor, write_shard
from gptfast_cli.core.formats import Weight


def weights_file(number: int) -> str:
    """The name of a file of weights, counted from 1."""
    return f"weights-{number:05}.safetensors"


def write_weights(
    path: Path, weights: Mapping[str, PlannedWeight], read: Callable[[str], Weight]
) -> Iterator[tuple[str, str, int]]:
    """Write a file of weights, each as `read` gives it by its name when its turn comes, and sync it to the disk.

    Yields name, SHA-256 and bytes of each tensor when it is written.
    """
    plan = planned_tensors(weights)
    for tensor, sha256 in write_shard(path, plan, _tensors(weights, read)):
        yield tensor, sha256, plan[tensor].n_bytes


def planned_tensors(weights: Mapping[str, PlannedWeight]) -> dict[str, PlannedTensor]:
    """The tensors of a file of weights by name, in their order."""
    return {tensor_name(name, part): plan for name, weight in weights.items() for part, plan in weight.parts.items()}


def stored_weights(
    file: str, weights: Mapping[str, PlannedWeight], digests: Mapping[str, str]
) -> dict[str, StoredWeight]:
    """What a manifest says of the weights of a file; `digests` has the SHA-256 of each tensor by name."""
    stored = {}
    for name, weight in weights.items():
        parts = {
            part: StoredPart(file, plan.code, plan.shape, digests[tensor_name(name, part)])
            for part, plan in weight.parts.items()
        }
        stored[name] = StoredWeight(weight.scheme, weight.shape, parts)
    return stored


def _tensors(weights: Mapping[str, PlannedWeight], read: Callable[[str], Weight]) -> Iterator[tuple[str, Tensor]]:
    for name, plan in weights.items():
        weight = read(name)
        for part in plan.parts:
            yield tensor_name(name, part), weight.parts[part]
        del weight  # before the next one is made
