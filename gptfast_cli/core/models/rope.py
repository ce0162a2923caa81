"""Rotary position embedding: which angles the heads of each layer are rotated by.

Pair i of a head of size d turns by position * theta^(-2i/d) (Su et al. 2021, arXiv:2104.09864); scaling stretches
some of these frequencies so that a model reaches further than it was trained.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gptfast_cli.core.backends.base import RopePositions
from gptfast_cli.core.config import (
    LayerSpec,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    ProportionalScaling,
    RopeConfig,
    YarnScaling,
)
from gptfast_cli.core.device import to_device


@dataclass(frozen=True, slots=True)
class Frequencies:
    """How a layer rotates its heads.

    radians:          for each token, [rotary_dim / 2] float32
    attention_factor: factor of the rotated queries and keys, which cosine and sine take along
    """

    radians: Tensor
    attention_factor: float = 1.0

    def to(self, device: torch.device) -> "Frequencies":
        """The same on a device."""
        return Frequencies(self.radians.to(device), self.attention_factor)


class LayerRotations:
    """The rotations of layers, by position; layers that rotate alike share them.

    frequencies: of each kind
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


def frequencies(head_dim: int, rope: RopeConfig) -> Frequencies:
    """The frequencies of heads of `head_dim` elements."""
    rotary_dim = rope.rotary_dim or head_dim
    exponents = torch.arange(0, rotary_dim, 2, dtype=torch.int64).float() / rotary_dim
    wavelengths = rope.theta**exponents  # over 2 pi
    plain = 1.0 / wavelengths
    match rope.scaling:
        case None:
            return Frequencies(plain)
        case LinearScaling(factor):
            return Frequencies(plain / factor)
        case Llama3Scaling() as scaling:
            return Frequencies(_llama3(plain, scaling))
        case YarnScaling() as scaling:
            return Frequencies(_yarn(wavelengths, rope.theta, scaling), scaling.attention_factor)
        case LongRopeScaling() as scaling:
            return Frequencies(1.0 / (torch.tensor(scaling.factors) * wavelengths), scaling.attention_factor)
        case ProportionalScaling(n_rotated, factor):
            is_rotated = torch.arange(len(plain)) < n_rotated
            return Frequencies(torch.where(is_rotated, plain / factor, 0.0))


def rotation(positions: Tensor, frequencies: Frequencies) -> tuple[Tensor, Tensor]:
    """Cosine and sine at positions [batch, time]: two [batch, time, rotary_dim / 2] float32.

    The angles are float32 too, rounded as every trained model saw them.
    """
    angles = positions.unsqueeze(-1).float() * frequencies.radians
    if frequencies.attention_factor == 1:
        return angles.cos(), angles.sin()
    return angles.cos() * frequencies.attention_factor, angles.sin() * frequencies.attention_factor


def positions(starts: Sequence[int], time: int, device: torch.device) -> Tensor:
    """Positions of `time` tokens that go on from each start, [batch, time] int64."""
    first = to_device(starts, torch.int64, device).unsqueeze(-1)
    return first + torch.arange(time, device=device)


def _llama3(plain: Tensor, scaling: Llama3Scaling) -> Tensor:
    turns = scaling.original_context * plain / (2 * math.pi)  # full turns within the original context
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = ((turns - low) / (high - low)).clamp(0.0, 1.0)  # 1: high frequency, as it was; 0: low, divided
    return (1 - kept) * plain / scaling.factor + kept * plain


def _yarn(wavelengths: Tensor, theta: float, scaling: YarnScaling) -> Tensor:
    n_pairs = len(wavelengths)

    def pair(n_turns: float) -> float:
        """The pair, as a real number, that makes so many full turns within the original context."""
        return n_pairs * math.log(scaling.original_context / (2 * math.pi * n_turns)) / math.log(theta)

    first, last = pair(scaling.beta_fast), pair(scaling.beta_slow)
    if scaling.is_rounded:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, 2 * n_pairs - 1)  # not n_pairs - 1: so did the authors
    width = last - first if last != first else 0.001
    divided = ((torch.arange(n_pairs, dtype=torch.float32) - first) / width).clamp(0.0, 1.0)
    return divided / (scaling.factor * wavelengths) + (1 - divided) / wavelengths
