"""What a checkpoint is going to hold, settled before the first byte of it is written."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from gptfast_cli.core.checkpoints.manifest import Provenance
from gptfast_cli.core.checkpoints.shard_writer import PlannedTensor
from gptfast_cli.core.config import ModelConfig
from gptfast_cli.core.formats import Weight


@dataclass(frozen=True, slots=True)
class PlannedWeight:
    """How a weight is going to be stored: scheme, logical shape, and the tensor of each part."""

    scheme: str
    shape: tuple[int, ...]
    parts: Mapping[str, PlannedTensor]

    @property
    def n_bytes(self) -> int:
        """Bytes of all parts."""
        return sum(part.n_bytes for part in self.parts.values())


def planned(outline: Weight) -> PlannedWeight:
    """The plan to store a weight like this one, which may be without its numbers."""
    parts = {name: PlannedTensor(part.dtype, tuple(part.shape)) for name, part in outline.parts.items()}
    return PlannedWeight(outline.scheme, outline.shape, parts)


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """A tokenizer to be copied into the checkpoint, and its special tokens as token ids.

    All files are in one folder, or in a folder inside of it, which is kept.
    """

    files: tuple[Path, ...]
    bos_id: int | None
    stop_ids: tuple[int, ...]
    add_bos: bool


@dataclass(frozen=True, slots=True)
class Contents:
    """What a checkpoint is going to hold; the weights stand in the order in which they are written."""

    name: str
    config: ModelConfig
    dtype: torch.dtype
    weights: Mapping[str, PlannedWeight]
    tokenizer: TokenizerFiles | None
    provenance: Provenance

    @property
    def n_bytes(self) -> int:
        """Bytes of all weights."""
        return sum(weight.n_bytes for weight in self.weights.values())
