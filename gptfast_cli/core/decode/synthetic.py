"""Random weights of a shape, made as their schemes store them: what a model costs to run does not depend on its words.

A quantised weight is made in blocks of rows, straight into its parts: no model of full precision is ever in memory. Its
elements have mean 0, or half a step of its grid, and variance 1 / in_features, so that activations keep their size.
"""

import math

import torch
from torch import Tensor

from gptfast_cli.core.config import ModelConfig
from gptfast_cli.core.decode.randomness import uniform
from gptfast_cli.core.formats import Block, QuantizedScheme, Weight, quantized
from gptfast_cli.core.formats.plain import NAME as PLAIN
from gptfast_cli.core.formats.plain import plain
from gptfast_cli.core.model.weights import weight_shapes
from gptfast_cli.core.quant.allocation import Allocation, Storage

_BLOCK_ELEMENTS = 1 << 23
_BIAS_SIZE = 0.02


class RandomWeights:
    """Weights of a shape on a device, plain ones in `dtype`; the same seed gives the same ones on the same device."""

    def __init__(
        self, config: ModelConfig, allocation: Allocation, *, device: torch.device, dtype: torch.dtype, seed: int
    ) -> None:
        self._shapes = weight_shapes(config)
        self._seeds = {name: int(uniform(seed, index, 0) * 2**32) for index, name in enumerate(self._shapes)}
        self._allocation, self._device, self._dtype = allocation, device, dtype

    def read(self, name: str, block: Block | None = None) -> Weight:
        """Make a weight, or a part of it; whenever it is asked for it is the same one."""
        shape, generator = self._shapes[name], torch.Generator(self._device).manual_seed(self._seeds[name])
        if len(shape) == 1:
            vector = plain(_vector(shape, generator, dtype=self._dtype, is_norm=not name.endswith("_bias")))
            return vector if block is None else vector.block(block)
        storage = self._allocation.storage(name, shape)
        matrix = random_matrix(storage, shape, generator, dtype=self._dtype)
        return matrix if block is None else matrix.block(block)


def planned_bytes(config: ModelConfig, allocation: Allocation, dtype: torch.dtype) -> int:
    """Bytes of the weights that `RandomWeights` makes."""
    storages = allocation.of(config)
    return sum(storages[name].n_bytes(shape, dtype.itemsize) for name, shape in weight_shapes(config).items())


def random_matrix(
    storage: Storage, shape: tuple[int, ...], generator: torch.Generator, *, dtype: torch.dtype
) -> Weight:
    """A random matrix [out_features, in_features] on the generator's device, stored so."""
    out_features, in_features = shape
    reach = math.sqrt(3 / in_features)  # a uniform distribution over -reach..reach has variance 1 / in_features
    if storage.scheme == PLAIN:
        matrix = torch.empty(shape, dtype=dtype, device=generator.device)
        return plain(matrix.uniform_(-reach, reach, generator=generator))
    scheme, group_size = quantized(storage.scheme), storage.group_size or in_features
    outline = storage.outline(shape)
    parts = {name: torch.empty_like(part, device=generator.device) for name, part in outline.parts.items()}
    n_rows = max(1, _BLOCK_ELEMENTS // in_features)
    for first in range(0, out_features, n_rows):
        rows = slice(first, min(first + n_rows, out_features))
        block = _quantized_rows(scheme, (rows.stop - first, in_features), group_size, generator, reach=reach)
        for name, part in block.parts.items():
            parts[name][rows] = part
    return Weight(storage.scheme, shape, parts)


def _quantized_rows(
    scheme: QuantizedScheme, shape: tuple[int, int], group_size: int, generator: torch.Generator, *, reach: float
) -> Weight:
    n_rows, in_features = shape
    n_groups = -(-in_features // group_size)
    high = torch.full((n_rows, n_groups), reach, device=generator.device)
    grid = scheme.grid(-high, high)
    codes = torch.randint(
        grid.lowest,
        grid.highest + 1,
        (n_rows, n_groups, group_size),
        dtype=torch.int8,
        generator=generator,
        device=generator.device,
    )
    if n_over := n_groups * group_size - in_features:
        codes[:, -1, -n_over:] = grid.zeros[:, -1:]
    return scheme.pack(codes, grid, in_features)


def _vector(shape: tuple[int, ...], generator: torch.Generator, *, dtype: torch.dtype, is_norm: bool) -> Tensor:
    """A norm's weights around 1, or a bias around 0."""
    values = torch.empty(shape, device=generator.device)
    values.uniform_(0.9, 1.1, generator=generator) if is_norm else values.normal_(std=_BIAS_SIZE, generator=generator)
    return values.to(dtype)
