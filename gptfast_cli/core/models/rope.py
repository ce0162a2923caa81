"""Rotary position embedding: which angles the heads of each layer are rotated by.

Pair i of a head of size d turns by position * theta^(-2i/d) (Su et al. 2021, arXiv:2104.09864); scaling stretches
some of these frequencies so that a model reaches further than it was trained.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from gptfast_cli.core.backends.base import RopePositions
from gptfast_cli.core.config import LayerSpec, LinearScaling, Llama3Scaling, RopeConfig
from gptfast_cli.core.device import to_device


class LayerRotations:
    """The rotations of layers, by position; layers that rotate alike share them.

    frequencies: of each kind, [rotary_dim / 2] float32
    kind_of:     the number of the kind of each layer; -1 for one that is not rotated
    """

    def __init__(self, layers: Sequence[LayerSpec], device: torch.device) -> None:
        of_layers = [(layer.attention.head_dim, layer.attention.rope) for layer in layers]
        kinds = {kind: number for number, kind in enumerate(dict.fromkeys(k for k in of_layers if k[1] is not None))}
        self.kind_of = tuple(kinds.get(kind, -1) for kind in of_layers)
        self.frequencies = tuple(frequencies(head_dim, rope).to(device) for head_dim, rope in kinds if rope is not None)

    def at(self, positions: Tensor) -> list[RopePositions]:
        """The place of tokens at positions [batch, time], for each layer."""
        places = [RopePositions(positions, *rotation(positions, each)) for each in self.frequencies]
        places.append(RopePositions(positions, None, None))
        return [places[kind] for kind in self.kind_of]


def frequencies(head_dim: int, rope: RopeConfig) -> Tensor:
    """Radians for each token, [rotary_dim / 2] float32."""
    rotary_dim = rope.rotary_dim or head_dim
    exponents = torch.arange(0, rotary_dim, 2, dtype=torch.int64).float() / rotary_dim
    plain = 1.0 / rope.theta**exponents
    match rope.scaling:
        case None:
            return plain
        case LinearScaling(factor):
            return plain / factor
        case Llama3Scaling() as scaling:
            return _llama3(plain, scaling)


def rotation(positions: Tensor, frequencies: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine at positions [batch, time]: two [batch, time, rotary_dim / 2] float32.

    The angles are float32 too, rounded as every trained model saw them.
    """
    angles = positions.unsqueeze(-1).float() * frequencies
    return angles.cos(), angles.sin()


def positions(starts: Sequence[int], time: int, device: torch.device) -> Tensor:
    """Positions of `time` tokens that go on from each start, [batch, time] int64."""
    first = to_device(starts, torch.int64, device).unsqueeze(-1)
    return first + torch.arange(time, device=device)


def _llama3(plain: Tensor, scaling: Llama3Scaling) -> Tensor:
    turns = scaling.original_context * plain / (2 * math.pi)  # full turns within the original context
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = ((turns - low) / (high - low)).clamp(0.0, 1.0)  # 1: high frequency, as it was; 0: low, divided
    return (1 - kept) * plain / scaling.factor + kept * plain
