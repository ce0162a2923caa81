"""Matrices cut into the groups that share a grid, and into blocks of rows."""

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812  (the name that everyone knows)
from torch import Tensor

from gptfast_cli.core.errors import CorruptError
from gptfast_cli.core.formats import QuantizedScheme, Weight


def in_groups(matrix: Tensor, group_size: int | None) -> Tensor:
    """A matrix [out, in] as groups [out, n_groups, group_size] float32, the last one filled up with zeros.

    Where `group_size` is None a whole row is a group.
    """
    size = group_size or matrix.shape[-1]
    padded = F.pad(matrix.float(), (0, -matrix.shape[-1] % size))
    return torch.unflatten(padded, -1, (-1, size))


def ranges(groups: Tensor) -> tuple[Tensor, Tensor]:
    """The lowest and the highest element of each group, [..., n_groups]; raises CorruptError on NaN and infinity."""
    low, high = groups.aminmax(dim=-1)
    if not bool((low.isfinite() & high.isfinite()).all()):  # NaN comes through
        raise CorruptError(
            "A weight to be quantised holds NaN or infinite values.",
            "The model is damaged: fetch it again, or tell its makers.",
        )
    return low, high


def in_row_blocks(
    matrix: Tensor,
    scheme: QuantizedScheme,
    group_size: int | None,
    quantize: Callable[[Tensor], Weight],
    *,
    block_elements: int,
) -> Weight:
    """A matrix as a weight of a scheme, from `quantize` a block of its rows at a time.

    So what is held beside the matrix and the weight stays small; a block has `block_elements`, or one row.
    """
    shape = (matrix.shape[0], matrix.shape[1])
    outline = scheme.outline(shape, group_size)
    parts = {name: torch.empty_like(part, device=matrix.device) for name, part in outline.parts.items()}
    n_rows = max(1, block_elements // matrix.shape[-1])
    for first in range(0, len(matrix), n_rows):
        rows = slice(first, first + n_rows)
        for name, part in quantize(matrix[rows]).parts.items():
            parts[name][rows] = part
    return Weight(outline.scheme, shape, parts)
