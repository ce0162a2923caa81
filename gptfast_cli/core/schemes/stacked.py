"""The stacked scheme: matrices in different schemes, one below the other, as one.

Query, key and value rows are one matrix here, and other programs may store them in different schemes. The parts are
those of all members, `<number>.<scheme>.<part>`; a member has as many rows as the first of its parts.
"""

import re
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from gptfast_cli.core.schemes import Weight, schemes
from gptfast_cli.core.schemes.plain import NAME as PLAIN

NAME = "stacked"
_PART: Final = re.compile(r"\d+\.\w+\.\w+")


def stack(weights: Sequence[Weight]) -> Weight:
    """Matrices of equal width, or vectors, below one another: in their own scheme if that is one, else stacked."""
    merged: list[Weight] = []
    for weight in weights:
        joined = None if not merged else _joined(merged[-1], weight)
        merged[-1:] = [*merged[-1:], weight] if joined is None else [joined]
    return merged[0] if len(merged) == 1 else _stacked(merged)


def _joined(first: Weight, second: Weight) -> Weight | None:
    """Both as one weight of their scheme; None if they differ in more than their rows."""
    shared = schemes[first.scheme].shared_parts
    if (first.scheme, first.shape[1:], list(first.parts)) != (second.scheme, second.shape[1:], list(second.parts)):
        return None
    for name, part in first.parts.items():
        other = second.parts[name]
        is_alike = part.dtype == other.dtype or first.scheme == PLAIN  # which is then in the wider dtype
        if name in shared:
            is_alike = is_alike and ((part.is_meta and other.is_meta) or _same_bytes(part, other))
        if not is_alike or part.shape[1:] != other.shape[1:]:
            return None
    parts = {
        name: part if name in shared else torch.cat([part, second.parts[name]]) for name, part in first.parts.items()
    }
    return Weight(first.scheme, (first.shape[0] + second.shape[0], *first.shape[1:]), parts)


def _same_bytes(part: Tensor, other: Tensor) -> bool:
    """Whether two tensors are equal; so is NaN, which some codes of e4m3 stand for."""
    return torch.equal(part.view(torch.uint8), other.view(torch.uint8))


def _stacked(weights: Sequence[Weight]) -> Weight:
    parts = {
        f"{number}.{weight.scheme}.{name}": part
        for number, weight in enumerate(weights)
        for name, part in weight.parts.items()
    }
    return Weight(NAME, (sum(weight.shape[0] for weight in weights), *weights[0].shape[1:]), parts)


def members(weight: Weight) -> list[Weight]:
    """The weights that a stacked one consists of, from the top."""
    found: dict[int, dict[str, Tensor]] = {}
    names: dict[int, str] = {}
    for name, part in weight.parts.items():
        number, scheme, own = name.split(".")
        found.setdefault(int(number), {})[own] = part
        names[int(number)] = scheme
    return [_member(names[number], weight, parts) for number, parts in found.items()]


def _member(scheme: str, weight: Weight, parts: dict[str, Tensor]) -> Weight:
    n_rows = next(len(part) for name, part in parts.items() if name not in schemes[scheme].shared_parts)
    return Weight(scheme, (n_rows, *weight.shape[1:]), parts)


class Stacked:
    """Each operation is one of the members."""

    group_sizes: tuple[int, ...] = ()
    shared_parts: tuple[str, ...] = ()

    def is_whole(self, weight: Weight) -> bool:
        if not weight.parts or not all(_PART.fullmatch(name) for name in weight.parts):
            return False
        found = members(weight) if {name.split(".")[1] for name in weight.parts} <= set(schemes) - {NAME} else []
        return (
            len(found) > 1
            and all(schemes[each.scheme].is_whole(each) for each in found)
            and sum(each.shape[0] for each in found) == weight.shape[0]
        )

    def dense(self, weight: Weight, dtype: torch.dtype) -> Tensor:
        return torch.cat([schemes[each.scheme].dense(each, dtype) for each in members(weight)])

    def rows(self, weight: Weight, index: Tensor, dtype: torch.dtype) -> Tensor:
        found = torch.empty(*index.shape, weight.shape[1], dtype=dtype, device=index.device)
        first = 0
        for each in members(weight):
            is_own = (index >= first) & (index < first + each.shape[0])
            found[is_own] = schemes[each.scheme].rows(each, index[is_own] - first, dtype)
            first += each.shape[0]
        return found

    def select_rows(self, weight: Weight, ranges: Sequence[slice]) -> Weight:
        found, pieces = members(weight), []
        for wanted in ranges:
            start, stop, _ = wanted.indices(weight.shape[0])
            first = 0
            for each in found:
                own = slice(max(start - first, 0), min(stop - first, each.shape[0]))
                if own.start < own.stop:
                    pieces.append(schemes[each.scheme].select_rows(each, (own,)))
                first += each.shape[0]
        return stack(pieces)

    def columns(self, weight: Weight, columns: slice) -> Weight:
        return stack([schemes[each.scheme].columns(each, columns) for each in members(weight)])

    def to(self, weight: Weight, device: torch.device, dtype: torch.dtype) -> Weight:
        return _stacked([schemes[each.scheme].to(each, device, dtype) for each in members(weight)])


PLUG = Stacked()
