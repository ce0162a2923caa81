"""Matrices cut into the groups that share a grid."""

import torch
import torch.nn.functional as F  # noqa: N812  (the name that everyone knows)
from torch import Tensor

from gptfast_cli.core.errors import CorruptError


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
