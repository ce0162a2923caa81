"""Calibration: second moments of the inputs of every matrix, collected block by block.

The inputs of a matrix are computed with everything before it already quantized: the previous layers and the earlier
matrices of the same layer. So each matrix compensates the errors before it (the "true sequential" order of
https://github.com/IST-DASLab/gptq). Memory holds one layer, the hidden states of all tokens and, until the output
projection is applied, their attention outputs.

The forward pass runs on the reference backend with its linear operation replaced by a `_Tap`, which accumulates the
moments of the inputs of one matrix and stops the pass there. A layer is split into three parts (QKV and attention;
output projection; feed-forward) and the hidden states advance part by part, so only the operations between the start
of a part and the matrix are computed twice.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from gptfast_cli.core.backends.base import LayerCache, Linear, RopePositions
from gptfast_cli.core.backends.reference import Reference, linear
from gptfast_cli.core.config import ModelConfig
from gptfast_cli.core.models.streaming import Operation, Stream
from gptfast_cli.core.models.weights import assemble_layer, layer_of
from gptfast_cli.core.quantize.quantizers import Inputs
from gptfast_cli.core.schemes import Weight, schemes
from gptfast_cli.core.schemes.plain import plain

_TILE = 512
"""Rows of H updated per product; only the upper triangle is accumulated, as H is symmetric."""


class Moments:
    """Sum of x x^T over inputs x [..., in_features], float32."""

    def __init__(self, in_features: int, device: torch.device) -> None:
        self._sums = torch.zeros(in_features, in_features, device=device)
        self._n_tokens = 0

    def add(self, x: Tensor) -> None:
        """Add inputs [..., in_features] of any float dtype."""
        rows = x.reshape(-1, x.shape[-1]).float()
        for tile, onward in self._tiles():
            self._sums[tile, onward].addmm_(rows[:, tile].t(), rows[:, onward])
        self._n_tokens += len(rows)

    def mean(self) -> Inputs:
        """The mean over all tokens, zero without tokens; consumes the sums (in place)."""
        for tile, onward in self._tiles():
            self._sums[onward, tile] = self._sums[tile, onward].t().clone()
        return Inputs(self._sums.div_(max(1, self._n_tokens)), self._n_tokens)

    def _tiles(self) -> Iterator[tuple[slice, slice]]:
        """(rows, columns) of each tile of the upper triangle."""
        for first in range(0, len(self._sums), _TILE):
            yield slice(first, first + _TILE), slice(first, None)


_AROUND_LAYERS = ("embedding", "norm")
"""Weight names that identify the first and the last block, which are not decoder layers."""

_PART_OF = {"qkv": 0, "attention_output": 1, "gate_up": 2, "down": 2}
"""The part of a layer that each matrix belongs to."""

_N_PARTS = 3


class Calibration:
    """The calibration texts' hidden states at the block being quantized.

    Call order: `enter` a block, then `inputs` and `replace` for each of its matrices, then `leave`.
    """

    def __init__(
        self, config: ModelConfig, texts: Sequence[Sequence[int]], *, device: torch.device, dtype: torch.dtype
    ) -> None:
        self._tap = _Tap()
        backend = Reference(self._tap)
        # unpadded: padding tokens would count in the moments
        self._stream = Stream(config, texts, backend=backend, device=device, filled_up=False)
        self._q_dims = [layer.attention.q_dim for layer in config.layers]
        self._device, self._dtype = device, dtype
        self._block: dict[str, Weight] = {}
        self._layer = 0  # that is being computed
        self._part = _N_PARTS  # the next part to run; _N_PARTS after the layer
        self._heads: list[Tensor] = []  # attention outputs of each batch, computed by part 0 and read by part 1

    def enter(self, block: Mapping[str, Weight]) -> None:
        """Start the next block of `weight_blocks`: {full weight name: weight}."""
        is_layer = block.keys().isdisjoint(_AROUND_LAYERS)
        self._block = {name: self._dense(weight) if is_layer else weight for name, weight in block.items()}
        self._part = 0 if is_layer else _N_PARTS
        if is_layer:
            self._layer = layer_of(next(iter(block)))
            self._heads = self._stream.room(self._q_dims[self._layer], self._dtype)
        if "norm" in block:
            self._stream.end()  # no matrix after the layers is calibrated

    def inputs(self, name: str) -> Inputs | None:
        """Second moments of the inputs of a matrix; all matrices before it must have been replaced.

        None for the embedding, which is a lookup table, and for the head, which may be tied to it.
        """
        if self._part == _N_PARTS:
            return None
        while self._part < _PART_OF[name.split(".")[2]]:
            self._go_on()
        self._tap.await_inputs(self._block[name], self._device)
        self._stream.run(self._layer, partial(_until_reached, self._operation()))
        return self._tap.taken_in().mean()

    def replace(self, name: str, weight: Weight) -> None:
        """Use the quantized weight for the rest of the forward pass."""
        self._block[name] = weight if self._part == _N_PARTS else self._dense(weight)

    def leave(self) -> None:
        """Run the rest of the block with its current weights."""
        while self._part < _N_PARTS:
            self._go_on()
        if "embedding" in self._block:
            embedding = self._block["embedding"]
            on_device = schemes[embedding.scheme].to(embedding, self._device, self._dtype)
            self._stream.embed(on_device, self._dtype)
        self._block = {}

    def _go_on(self) -> None:
        self._stream.run(self._layer, self._operation())
        self._part += 1
        if self._part == _PART_OF["gate_up"]:
            self._heads = []  # free them before the feed-forward, which needs the most memory

    def _operation(self) -> Operation:
        """The next part of the layer with the current weights."""
        layer, weights = self._stream.layers[self._layer], assemble_layer(self._block)
        heads = iter(self._heads)

        def attend(x: Tensor, *, place: RopePositions, cache: LayerCache) -> Tensor:
            next(heads).copy_(layer.heads(x, weights, place=place, cache=cache))
            return x

        def join(x: Tensor, *, place: RopePositions, cache: LayerCache) -> Tensor:  # noqa: ARG001  (an Operation's)
            return layer.join(x, next(heads), weights)

        def feed_forward(x: Tensor, *, place: RopePositions, cache: LayerCache) -> Tensor:  # noqa: ARG001
            return layer.feed_forward(x, weights)

        return (attend, join, feed_forward)[self._part]

    def _dense(self, weight: Weight) -> Weight:
        """The dequantized weight on the device, converted once for all texts."""
        on_device = schemes[weight.scheme].to(weight, self._device, self._dtype)
        return plain(schemes[weight.scheme].dense(on_device, self._dtype))


def _until_reached(part: Operation, x: Tensor, *, place: RopePositions, cache: LayerCache) -> Tensor:
    """Run a part of a layer up to the tapped matrix; returns x unchanged."""
    with contextlib.suppress(_ReachedError):
        part(x, place=place, cache=cache)
    return x


class _ReachedError(Exception):
    """Ends a forward pass at the tapped matrix."""


class _Tap:
    """The reference's linear operation; at one weight it accumulates the inputs and ends the pass."""

    def __init__(self) -> None:
        self._awaited: Weight | None = None
        self._moments: Moments | None = None

    def await_inputs(self, weight: Weight, device: torch.device) -> None:
        self._awaited, self._moments = weight, Moments(weight.shape[1], device)

    def taken_in(self) -> Moments:
        """Return the accumulated moments and stop accumulating."""
        moments, self._awaited, self._moments = self._moments, None, None
        assert moments is not None
        return moments

    def __call__(self, x: Tensor, layer: Linear) -> Tensor:
        if layer.weight is not self._awaited or self._moments is None:
            return linear(x, layer)
        self._moments.add(x)
        raise _ReachedError
