"""Every quantized scheme with every group size that it has, and codes and params for it."""

import torch
from torch import Tensor

from gptfast_cli.core.schemes import AffineParams, quantized, quantized_names

CASES = [(name, group_size) for name in quantized_names() for group_size in (quantized(name).group_sizes or (None,))]


def random_codes(
    name: str, group_size: int | None, *, rows: int, in_features: int, seed: int = 0
) -> tuple[Tensor, AffineParams]:
    """Random codes and random params that the scheme can store; past `in_features` stands the zero point."""
    generator = torch.Generator().manual_seed(seed)
    n_groups = -(-in_features // group_size) if group_size else 1
    ends = torch.randn(2, rows, n_groups, generator=generator).movedim(0, -1)
    params = quantized(name).fitter(ends.flatten(1)).fit(ends)
    assert isinstance(params, AffineParams)
    shape = (rows, n_groups, group_size or in_features)
    codes = torch.randint(params.lowest, params.highest + 1, shape, generator=generator, dtype=torch.int8)
    padding = torch.arange(shape[1] * shape[2]).view(shape[1:]) >= in_features
    return torch.where(padding, params.zeros.unsqueeze(-1), codes), params
