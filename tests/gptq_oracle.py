"""GPTQ in float64, written from the paper's equations, and inputs to run it on."""

import torch
from torch import Tensor

from gptfast_cli.core.quantize.quantizers import Inputs
from gptfast_cli.core.quantize.quantizers.search import search_params
from gptfast_cli.core.schemes import QuantizedScheme

DAMPING = 0.01


def inputs_of(in_features: int, *, n_tokens: int | None = None, seed: int = 0) -> Inputs:
    """Moments of inputs that hang together and differ in size, as a model's do."""
    generator = torch.Generator().manual_seed(seed)
    n_tokens = n_tokens or 8 * in_features
    mixing = torch.randn(in_features, in_features, generator=generator) / in_features**0.5
    x = torch.randn(n_tokens, in_features, generator=generator) @ (mixing + 0.5 * torch.eye(in_features))
    x *= torch.rand(in_features, generator=generator) * 2
    return Inputs(x.t() @ x / n_tokens, max(n_tokens, 4 * in_features))


def output_error(matrix: Tensor, found: Tensor, inputs: Inputs) -> float:
    difference = (matrix - found).double()
    return float(((difference @ inputs.moments.double()) * difference).sum())


def brute_force(matrix: Tensor, inputs: Inputs, scheme: QuantizedScheme, group_size: int | None) -> Tensor:
    """Optimal brain quantization in a fixed order: equations 2 and 3 of arXiv:2210.17323, one weight at a time.

    The whole inverse is kept, and the row and column of what was rounded are eliminated from it.
    """
    n = matrix.shape[1]
    size = group_size or n
    diagonal = inputs.moments.diagonal()
    damped = inputs.moments.double() + DAMPING * diagonal.double().mean() * torch.eye(n, dtype=torch.float64)
    inverse = torch.linalg.inv(damped)
    weights, found = matrix.double().clone(), torch.zeros(matrix.shape, dtype=torch.float64)
    groups = [list(range(first, min(first + size, n))) for first in range(0, n, size)]
    for group in sorted(groups, key=lambda group: -float(diagonal[group].amax())):
        columns = sorted(group, key=lambda column: -float(diagonal[column]))
        now = weights[:, columns].float().unsqueeze(1)
        params = search_params(now, damped.diagonal()[columns].float(), scheme.fitter(matrix))
        for column in columns:
            code = params.encode(weights[:, column].float().view(-1, 1, 1))
            found[:, column] = params.decode(code).double().flatten()
            step = (weights[:, column] - found[:, column]) / inverse[column, column]
            weights -= step.unsqueeze(1) * inverse[column]
            inverse -= inverse[:, column].unsqueeze(1) * inverse[column].unsqueeze(0) / inverse[column, column]
    return found
