"""Schemes: how a weight matrix is stored. One file each; the file name is the scheme's name.

A weight is a logical matrix or vector; its scheme stores it as one or more named tensors, its *parts*. The plain
scheme has a single part that is the matrix itself. A quantized one cuts each row into groups and stores a small
integer, the *code*, for each element, and a scale and a zero point for each group: the group's *grid*.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import Field, dataclass, fields, replace
from itertools import product
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from gptfast_cli.core.registry import Plugs


@dataclass(frozen=True, slots=True)
class Weight:
    """One weight as its scheme stores it.

    shape: the logical shape, [out_features, in_features] of a matrix or [features] of a vector
    parts: stored tensors by part name; the first axis of all but the scheme's `shared_parts` are the rows
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
        return weight if block.rows is None else schemes[weight.scheme].select_rows(weight, block.rows)

    def row_block(self, rows: slice) -> "Weight":
        """Some rows of a matrix, as views."""
        return self.block(Block(rows=(rows,)))


@dataclass(frozen=True, slots=True)
class Block:
    """A part of a weight: of a matrix some of its rows or some of its columns, of a vector some elements, its rows.

    rows:    ranges that follow one another; None is all of them
    columns: one range; None is all of them
    """

    rows: tuple[slice, ...] | None = None
    columns: slice | None = None


WHOLE = Block()


class Scheme(Protocol):
    """How a weight is stored, and how to have it back as a dense tensor."""

    group_sizes: tuple[int, ...]
    """Elements a group can have; none where a group is always a whole row, or nothing is grouped."""

    shared_parts: tuple[str, ...]
    """Names of the parts that belong to all rows alike."""

    def is_whole(self, weight: Weight) -> bool:
        """Whether the parts are this scheme's, each of the dtype and shape that goes with `weight.shape`."""
        ...

    def dense(self, weight: Weight, dtype: torch.dtype) -> Tensor:
        """The weight as a dense tensor of `weight.shape` in `dtype`; no copy where none is needed."""
        ...

    def rows(self, weight: Weight, index: Tensor, dtype: torch.dtype) -> Tensor:
        """Rows of a matrix, [*index.shape, in_features], reading no others: an embedding lookup."""
        ...

    def select_rows(self, weight: Weight, ranges: tuple[slice, ...]) -> Weight:
        """Ranges of rows, one after another; views where it is one range."""
        ...

    def columns(self, weight: Weight, columns: slice) -> Weight:
        """Some columns of a matrix, exactly as they are; groups that are cut become smaller ones.

        Raises UsageError if no groups that can be stored end at these borders.
        """
        ...

    def to(self, weight: Weight, device: torch.device, dtype: torch.dtype) -> Weight:
        """The weight on `device`, its floating values in `dtype` where the scheme leaves that open."""
        ...


class GroupParams(Protocol):
    """What a scheme stores beside the codes of groups: scales, and whatever else their values depend on.

    An implementation is a frozen dataclass; each of its Tensor fields has the shape [..., n_groups], so that params can
    be chosen and joined group by group (`select_params`, `concat_params`). Codes are int8, lowest <= code <= highest.
    """

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def lowest(self) -> int:
        """The lowest code."""
        ...

    @property
    def highest(self) -> int:
        """The highest code."""
        ...

    def encode(self, values: Tensor) -> Tensor:
        """Codes of the nearest values that can be stored, int8; `values` is [..., n_groups, group_size] float32."""
        ...

    def decode(self, codes: Tensor) -> Tensor:
        """Values of codes [..., n_groups, group_size]; float32 of that shape."""
        ...


class GroupFitter(Protocol):
    """Finds the params of groups of one matrix: all that nearest, search and GPTQ need to know of a scheme.

    Groups are [out_features, n_groups, group_size] float32, finite; any finite input gives finite params.
    """

    def fit(self, groups: Tensor) -> GroupParams:
        """Params that cover the range of each group, [out_features, n_groups]; used by round-to-nearest."""
        ...

    def candidates(self, groups: Tensor, importance: Tensor) -> Iterator[GroupParams]:
        """Other params that may have a smaller error sum_i h_i (w_i - decode(encode(w_i)))^2.

        importance: h, not negative, of a shape that broadcasts to that of the groups
        """
        ...


def select_params(mask: Tensor, params: GroupParams, other: GroupParams) -> GroupParams:
    """For each group `params` where the mask [..., n_groups] is True, else `other`; both of one scheme."""
    return replace(params, **{name: torch.where(mask, of, getattr(other, name)) for name, of in _tensors(params)})


def concat_params(params: Sequence[GroupParams]) -> GroupParams:
    """Params of consecutive groups, [..., n_groups] each, as those of all."""
    first = params[0]
    return replace(
        first, **{name: torch.cat([getattr(each, name) for each in params], -1) for name, _ in _tensors(first)}
    )


def _tensors(params: GroupParams) -> list[tuple[str, Tensor]]:
    by_name = ((field.name, getattr(params, field.name)) for field in fields(params))
    return [(name, value) for name, value in by_name if isinstance(value, Tensor)]


@dataclass(frozen=True, slots=True)
class AffineParams:
    """Params of integer schemes: value = (code - zero) * scale.

    scales: [..., n_groups], positive, in the dtype that stores them
    zeros:  [..., n_groups] int8, the code of exactly 0
    """

    scales: Tensor
    zeros: Tensor
    lowest: int
    highest: int

    def encode(self, values: Tensor) -> Tensor:
        steps = values / self.scales.float().unsqueeze(-1)
        # ties round away from zero: both ends of a range whose middle lies between two codes are kept
        steps = steps.add_(steps.sign(), alpha=0.5).trunc_()
        return steps.add_(self.zeros.unsqueeze(-1)).clamp_(self.lowest, self.highest).to(torch.int8)

    def decode(self, codes: Tensor) -> Tensor:
        return codes.float().sub_(self.zeros.unsqueeze(-1)).mul_(self.scales.float().unsqueeze(-1))

    def refit(self, groups: Tensor, importance: Tensor) -> "AffineParams":
        """The scales of least squares for the codes that these params give: sum h w c / sum h c^2, c = code - zero."""
        steps = (self.encode(groups) - self.zeros.unsqueeze(-1)).float()
        weighted = steps * importance
        scales = (weighted * groups).sum(dim=-1) / weighted.mul_(steps).sum(dim=-1)
        limits = torch.finfo(self.scales.dtype)
        is_usable = (scales > limits.tiny) & (scales < limits.max / (self.highest - self.lowest + 1))
        return replace(self, scales=torch.where(is_usable, scales, self.scales.float()).to(self.scales.dtype))


_STRETCHES = (1.0, 0.93, 0.86, 0.79, 0.72)
"""Factors of either end of a group's range. Below 0.72 the elements that are clipped cost more than the finer step
saves. Factors above 1 lower the error by another 2 % in groups of 32, but not the KLD of the models that were measured:
the largest weights then lie between two codes."""


@dataclass(frozen=True, slots=True)
class AffineFitter:
    """Fits affine params by the range of each group.

    grid: the finest params that can be stored which span low..high and 0, both [out_features, n_groups] float32.
          A value of the range is within half a step; the ends may miss it by a little more where the scale is rounded.
    """

    grid: Callable[[Tensor, Tensor], AffineParams]

    def fit(self, groups: Tensor) -> AffineParams:
        return self.grid(*groups.aminmax(dim=-1))

    def candidates(self, groups: Tensor, importance: Tensor) -> Iterator[AffineParams]:
        """Both ends of the range shrunk separately, which moves scale and zero point; then the scale refitted."""
        low, high = groups.aminmax(dim=-1)
        for low_stretch, high_stretch in product(_STRETCHES, repeat=2):
            yield self.grid(low * low_stretch, high * high_stretch).refit(groups, importance)


@runtime_checkable
class QuantizedScheme(Scheme, Protocol):
    """A scheme that stores codes and group params: it says which can be stored, a quantizer chooses among them."""

    def meta_weight(self, shape: tuple[int, ...], group_size: int | None) -> Weight:
        """A matrix of this shape without its numbers, on the meta device: what is going to be stored.

        `group_size` is one of `group_sizes`, or None if there are none; so it is for every caller of a scheme.
        """
        ...

    def fitter(self, matrix: Tensor) -> GroupFitter:
        """The fitter for groups of a matrix [out_features, in_features] of any float dtype.

        A scheme whose groups are independent ignores the matrix; one with a scale per matrix takes that from it.
        """
        ...

    def pack(self, codes: Tensor, params: GroupParams, in_features: int) -> Weight:
        """Codes [out, n_groups, group_size] int8 and the params of this scheme as a weight [out, in_features].

        Past `in_features` the last group holds the code of 0.
        """
        ...


schemes: Plugs[Scheme] = Plugs(__name__)


def quantized_names() -> list[str]:
    """Names of the schemes that a quantizer can write."""
    return [name for name, scheme in schemes.items() if isinstance(scheme, QuantizedScheme)]


def quantized(name: str) -> QuantizedScheme:
    """The quantized scheme of a name, which must be one."""
    scheme = schemes[name]
    assert isinstance(scheme, QuantizedScheme), name
    return scheme


def select_part_rows(weight: Weight, ranges: Sequence[slice]) -> Weight:
    """Ranges of rows of a weight, by ranges of its parts: what most schemes' `select_rows` does."""
    shared = schemes[weight.scheme].shared_parts

    def selected(part: Tensor) -> Tensor:
        return part[ranges[0]] if len(ranges) == 1 else torch.cat([part[rows] for rows in ranges])

    parts = {name: part if name in shared else selected(part) for name, part in weight.parts.items()}
    n_rows = sum(len(range(*rows.indices(weight.shape[0]))) for rows in ranges)
    return Weight(weight.scheme, (n_rows, *weight.shape[1:]), parts)


def is_like(weight: Weight, meta_weight: Weight) -> bool:
    """Whether the parts of a weight have the names, dtypes and shapes of another's."""
    return forms(weight) == forms(meta_weight)


def forms(weight: Weight) -> frozenset[tuple[str, torch.dtype, torch.Size]]:
    """Name, dtype and shape of each part."""
    return frozenset((name, part.dtype, part.shape) for name, part in weight.parts.items())
