"""Rotary position embedding: the angle by which each pair of a head's elements is turned at a position.

Pair i of a head of size d turns by position * theta^(-2i/d) (Su et al. 2021, arXiv:2104.09864); scaling stretches
some of these frequencies so that a model reaches further than it was trained.
"""

import math

import torch
from torch import Tensor

from gptfast_cli.core.config import LinearScaling, Llama3Scaling, RopeConfig


def frequencies(head_dim: int, rope: RopeConfig) -> Tensor:
    """Radians for each token, [head_dim / 2] float32."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
    plain = 1.0 / rope.theta**exponents
    match rope.scaling:
        case None:
            return plain
        case LinearScaling(factor):
            return plain / factor
        case Llama3Scaling() as scaling:
            return _llama3(plain, scaling)


def rotation(positions: Tensor, frequencies: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine at positions [batch, time]: two [batch, time, head_dim / 2] float32.

    The angles are float32 too, rounded as every trained model saw them.
    """
    angles = positions.unsqueeze(-1).float() * frequencies
    return angles.cos(), angles.sin()


def _llama3(plain: Tensor, scaling: Llama3Scaling) -> Tensor:
    turns = scaling.original_context * plain / (2 * math.pi)  # full turns within the original context
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = ((turns - low) / (high - low)).clamp(0.0, 1.0)  # 1: high frequency, as it was; 0: low, divided
    return (1 - kept) * plain / scaling.factor + kept * plain
