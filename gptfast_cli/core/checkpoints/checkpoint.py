"""What the rest of the program sees of a model's files, whichever layout they are in."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from gptfast_cli.core.checkpoints.manifest import CalibrationText, TokenizerEntry
from gptfast_cli.core.config import ModelConfig
from gptfast_cli.core.errors import CorruptError
from gptfast_cli.core.events import Progress
from gptfast_cli.core.schemes import Block, Weight


@dataclass(frozen=True, slots=True)
class Piece:
    """One stored tensor of a weight and its place, `file: tensor`, for errors that name it."""

    place: str
    tensor: Tensor

    @property
    def is_finite(self) -> bool:
        """Whether it holds neither NaN nor infinity; it is read once, and no mask as large as it is made."""
        low, high = self.tensor.aminmax()  # NaN comes through
        return bool(low.isfinite() and high.isfinite())

    def check_finite(self) -> None:
        """Raise CorruptError with the place where it is not finite."""
        if not self.is_finite:
            raise CorruptError(
                f"{self.place}: holds NaN or infinite values.",
                "The model is damaged: fetch it again, or tell its makers.",
            )


class Checkpoint(Protocol):
    """A model's files, open for reading; nothing of a weight is read before it is asked for."""

    @property
    def path(self) -> Path:
        """The folder."""
        ...

    @property
    def name(self) -> str:
        """The checkpoint's own name, `org/name[:variant]` or a folder's."""
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
        """How all weights are stored, for a person: "plain", or "int4 layers, int8 embedding and head"."""
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
        """What a manifest says of the tokenizer; None if there is no manifest or no tokenizer."""
        ...

    @property
    def calibration(self) -> CalibrationText | None:
        """The text that its rounding has learned from; None if it has not, or no manifest tells."""
        ...

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that hold the weights."""
        ...

    @property
    def remarks(self) -> tuple[str, ...]:
        """What a person should know of how it was read, a sentence each; none as a rule."""
        ...

    def dtypes(self, name: str) -> tuple[torch.dtype, ...]:
        """The dtype of each stored tensor of a weight."""
        ...

    def weight(self, name: str, block: Block | None = None) -> Weight:
        """A weight by our name for it, as in `weight_shapes`; mapped from its file where it is stored as one tensor.

        A rank that holds a part of the model names its block, and nothing around that is read.
        """
        ...

    def pieces(self, name: str) -> Iterator[Piece]:
        """The stored tensors that make a weight, one after the other, each mapped from its file."""
        ...

    def verify(self) -> Iterator[Progress]:
        """Read every byte and compare it with its SHA-256.

        Raises CorruptError with file and tensor, and the command that makes it anew; UsageError where there is none
        to compare with.
        """
        ...
