"""The checkpoint protocol: a model's files, in whichever layout, as the rest of the program reads them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from gptfast_cli.core.checkpoints.manifest import CalibrationText, TokenizerEntry
from gptfast_cli.core.config import ModelConfig
from gptfast_cli.core.errors import CorruptError
from gptfast_cli.core.events import Progress
from gptfast_cli.core.fields import read_fields
from gptfast_cli.core.models.weights import weight_shapes
from gptfast_cli.core.schemes import Block, Weight


@dataclass(frozen=True, slots=True)
class LocatedTensor:
    """One stored tensor of a weight; `location` is `file: tensor`, for error messages."""

    location: str
    tensor: Tensor

    @property
    def is_finite(self) -> bool:
        """Whether it holds neither NaN nor infinity; one pass, without a mask of its size."""
        low, high = self.tensor.aminmax()  # NaN comes through
        return bool(low.isfinite() and high.isfinite())

    def check_finite(self) -> None:
        """Raise CorruptError with the location if a value is not finite."""
        if not self.is_finite:
            raise CorruptError(
                f"{self.location}: holds NaN or infinite values.",
                "The model is damaged: download it again, or report it to its authors.",
            )


GENERATION_CONFIG = "generation_config.json"


def read_generation_config(folder: Path) -> Mapping[str, Any]:
    """The fields of a folder's generation_config.json; empty without one. Raises CorruptError for a damaged file."""
    file = folder / GENERATION_CONFIG
    return read_fields(file).values if file.is_file() else {}


def outline_of(checkpoint: "Checkpoint") -> dict[str, Weight]:
    """Every weight by its name, on the meta device, in reading order."""
    return {name: checkpoint.outline(name) for name in weight_shapes(checkpoint.config)}


class Checkpoint(Protocol):
    """A model's files, open for reading; weights are read on request only."""

    @property
    def path(self) -> Path:
        """The folder."""
        ...

    @property
    def name(self) -> str:
        """Name of the checkpoint, `org/name[:variant]` or that of its folder."""
        ...

    @property
    def config(self) -> ModelConfig:
        """The model's shape."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """The default compute dtype."""
        ...

    @property
    def scheme(self) -> str:
        """The scheme of the layers' matrices, such as "plain"."""
        ...

    @property
    def stored_as(self) -> str:
        """How all weights are stored, for display: "plain", or "int4 layers, int8 embedding and head"."""
        ...

    @property
    def n_bytes(self) -> int:
        """Bytes of all weights as stored."""
        ...

    @property
    def n_params(self) -> int:
        """Parameters of the model; a tied head counts once."""
        ...

    @property
    def special_tokens(self) -> TokenizerEntry | None:
        """The manifest's tokenizer entry; None if there is no manifest or no tokenizer."""
        ...

    @property
    def calibration(self) -> CalibrationText | None:
        """The calibration text of its quantizer; None if there is none, or no manifest records it."""
        ...

    @property
    def generation_config(self) -> Mapping[str, Any]:
        """The fields of the makers' generation_config.json; empty if there is none. Raises CorruptError."""
        ...

    @property
    def files(self) -> tuple[Path, ...]:
        """Weight files."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences for the user about how it was read; usually none."""
        ...

    def outline(self, name: str) -> Weight:
        """A weight by its name without its numbers, on the meta device."""
        ...

    def weight(self, name: str, block: Block | None = None) -> Weight:
        """A weight by its name in `weight_shapes`, memory-mapped if it is stored as one tensor.

        `block`: the shard of a rank; nothing outside of it is read.
        """
        ...

    def tensors(self, name: str) -> Iterator[LocatedTensor]:
        """The stored tensors of a weight, in order, each memory-mapped."""
        ...

    def verify(self) -> Iterator[Progress]:
        """Read every byte and compare the hashes.

        Raises CorruptError with file and tensor, and the command that restores it; UsageError if no hash is known.
        """
        ...
