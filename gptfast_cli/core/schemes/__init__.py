"""Schemes: how a weight matrix is stored. One file each; the file name is the scheme's name.

A weight is a logical matrix or vector; its scheme stores it as one or more named tensors, its *parts*. The plain
scheme has a single part that is the matrix itself. A quantised one cuts each row into groups and stores a small
integer, the *code*, for each element, and a scale and a zero point for each group: the group's *grid*.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from gptfast_cli.core.registry import Plugs


@dataclass(frozen=True, slots=True)
class Weight:
    """One weight as its scheme stores it.

    shape: the logical shape, [out_features, in_features] of a matrix or [features] of a vector
    parts: stored tensors by part name, as listed by the scheme; those of a matrix have its rows as their first axis
    """

    scheme: str
    shape: tuple[int, ...]
    parts: Mapping[str, Tensor]

    @property
    def n_bytes(self) -> int:
        """Bytes that reading the whole weight moves."""
        return sum(part.nbytes for part in self.parts.values())

    def block(self, block: "Block") -> "Weight":
        """A part of it; views where that can be, and nothing of the rest is read. Raises UsageError as `columns`."""
        weight = self if block.columns is None else schemes[self.scheme].columns(self, block.columns)
        if block.rows is None:
            return weight
        blocks = [weight.row_block(rows) for rows in block.rows]
        if len(blocks) == 1:
            return blocks[0]
        parts = {name: torch.cat([each.parts[name] for each in blocks]) for name in weight.parts}
        return Weight(self.scheme, (sum(each.shape[0] for each in blocks), *weight.shape[1:]), parts)

    def row_block(self, rows: slice) -> "Weight":
        """Some rows of a matrix, as views."""
        parts = {name: part[rows] for name, part in self.parts.items()}
        return Weight(self.scheme, (len(range(*rows.indices(self.shape[0]))), *self.shape[1:]), parts)


@dataclass(frozen=True, slots=True)
class Block:
    """A part of a weight: of a matrix some of its rows or some of its columns, of a vector some elements, its rows.

    rows:    ranges that follow one another; None is all of them
    columns: one range; None is all of them
    """

    rows: tuple[slice, ...] | None = None
    columns: slice | None = None


WHOLE = Block()


@dataclass(frozen=True, slots=True)
class Grid:
    """The numbers that the codes of each group stand for: (code - zero) * scale, lowest <= code <= highest.

    scales: [..., n_groups], positive, in the dtype that stores them
    zeros:  [..., n_groups] int8, the code that stands for exactly 0
    """

    scales: Tensor
    zeros: Tensor
    lowest: int
    highest: int

    def codes(self, values: Tensor) -> Tensor:
        """The codes nearest to values [..., n_groups, group_size] float32; int8 of that shape."""
        steps = values / self.scales.float().unsqueeze(-1)
        # a tie goes away from zero: so do both ends of a range whose middle lies between two codes, and none is lost
        steps = steps.add_(steps.sign(), alpha=0.5).trunc_()
        return steps.add_(self.zeros.unsqueeze(-1)).clamp_(self.lowest, self.highest).to(torch.int8)

    def values(self, codes: Tensor) -> Tensor:
        """What codes [..., n_groups, group_size] stand for; float32 of that shape."""
        return codes.float().sub_(self.zeros.unsqueeze(-1)).mul_(self.scales.float().unsqueeze(-1))


class Scheme(Protocol):
    """How a weight is stored, and how to have it back as a dense tensor."""

    def part_names(self) -> tuple[str, ...]:
        """Names of the stored tensors, in the order in which they are written."""
        ...

    def is_whole(self, weight: Weight) -> bool:
        """Whether the parts are this scheme's, each of the dtype and shape that goes with `weight.shape`."""
        ...

    def dense(self, weight: Weight, dtype: torch.dtype) -> Tensor:
        """The weight as a dense tensor of `weight.shape` in `dtype`; no copy where none is needed."""
        ...

    def rows(self, weight: Weight, index: Tensor, dtype: torch.dtype) -> Tensor:
        """Rows of a matrix, [*index.shape, in_features], reading no others: an embedding lookup."""
        ...

    def columns(self, weight: Weight, columns: slice) -> Weight:
        """Some columns of a matrix, exactly as they are; groups that are cut become smaller ones.

        Raises UsageError where no groups that can be stored end at these borders.
        """
        ...

    def to(self, weight: Weight, device: torch.device, dtype: torch.dtype) -> Weight:
        """The weight on `device`, its floating values in `dtype` where the scheme leaves that open."""
        ...


@runtime_checkable
class QuantizedScheme(Scheme, Protocol):
    """A scheme of codes on a grid. It says which grids and codes can be stored; a rounding chooses among them."""

    group_sizes: tuple[int, ...]
    """Elements a group can have; none where a group is always a whole row."""

    def outline(self, shape: tuple[int, ...], group_size: int | None) -> Weight:
        """A matrix of this shape without its numbers, on the meta device: what is going to be stored.

        `group_size` is one of `group_sizes`, or None where there are none; so it is for every caller of a scheme.
        """
        ...

    def grid(self, low: Tensor, high: Tensor) -> Grid:
        """The finest grid that can be stored which spans low..high and 0, of groups [out, n_groups] float32.

        A number of the range is within half a step of the grid; the ends may miss it by a little more where the step
        was rounded to be stored. Any finite input gives a grid of finite numbers.
        """
        ...

    def pack(self, codes: Tensor, grid: Grid, in_features: int) -> Weight:
        """Codes [out, n_groups, group_size] int8 and their grid as a weight [out, in_features].

        A last group that goes beyond `in_features` holds the zero point there, and so exact zeros.
        """
        ...


schemes: Plugs[Scheme] = Plugs(__name__)


def quantized(name: str) -> QuantizedScheme:
    """The quantised scheme of a name, which must be one."""
    scheme = schemes[name]
    assert isinstance(scheme, QuantizedScheme), name
    return scheme


def is_like(weight: Weight, outline: Weight) -> bool:
    """Whether the parts of a weight have the names, dtypes and shapes of another's."""
    return _forms(weight) == _forms(outline)


def _forms(weight: Weight) -> dict[str, tuple[torch.dtype, torch.Size]]:
    return {name: (part.dtype, part.shape) for name, part in weight.parts.items()}
