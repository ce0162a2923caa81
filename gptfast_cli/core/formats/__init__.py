"""Schemes: how a weight matrix is stored. One file each; the file name is the scheme's name.

A weight is a logical matrix or vector; its scheme stores it as one or more named tensors, its *parts*. The plain
scheme has a single part that is the matrix itself; a quantised one adds scales beside its integers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from gptfast_cli.core.registry import Plugs


@dataclass(frozen=True, slots=True)
class Weight:
    """One weight as its scheme stores it.

    shape: the logical shape, [out_features, in_features] of a matrix or [features] of a vector
    parts: stored tensors by part name, as listed by the scheme
    """

    scheme: str
    shape: tuple[int, ...]
    parts: Mapping[str, Tensor]

    @property
    def n_bytes(self) -> int:
        """Bytes that reading the whole weight moves."""
        return sum(part.nbytes for part in self.parts.values())


class Scheme(Protocol):
    """How a weight is stored, and how to have it back as a dense tensor."""

    def part_names(self) -> tuple[str, ...]:
        """Names of the stored tensors, in the order in which they are written."""
        ...

    def dense(self, weight: Weight, dtype: torch.dtype) -> Tensor:
        """The weight as a dense tensor of `weight.shape` in `dtype`; no copy where none is needed."""
        ...

    def rows(self, weight: Weight, index: Tensor, dtype: torch.dtype) -> Tensor:
        """Rows of a matrix, [*index.shape, in_features], reading no others: an embedding lookup."""
        ...

    def to(self, weight: Weight, device: torch.device, dtype: torch.dtype) -> Weight:
        """The weight on `device`, its floating values in `dtype` where the scheme leaves that open."""
        ...


schemes: Plugs[Scheme] = Plugs(__name__)
