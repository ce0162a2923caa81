"""From logits to the probabilities that a token is drawn from, in float32, each step named as the field names it.

The order is that of transformers' generate: repetition penalty, temperature, top-k, top-p, min-p.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gptfast_cli.core.errors import UsageError


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a token is chosen; temperature 0 takes the most probable one."""

    temperature: float = 0.8
    top_k: int = 200  # 0: off
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    @property
    def is_greedy(self) -> bool:
        """Whether the token is the most probable one rather than drawn."""
        return self.temperature == 0


_FLOAT32 = torch.finfo(torch.float32)
"""Logits are float32: a smaller number than its `tiny` would be 0 there, a larger one than its `max` infinite."""

_MOST_TOP_K = 2**31 - 1

_MOST_PENALTY = 1e6
"""Logits up to 3e32 stay finite under this penalty, and under 1 / it."""


def check(sampling: Sampling) -> None:
    """Raise UsageError for a value outside its range, in the precision that computes with it."""
    temperature, penalty = sampling.temperature, sampling.repetition_penalty
    ranges = {
        "--temperature": (
            temperature,
            temperature == 0 or _FLOAT32.tiny <= temperature <= _FLOAT32.max,
            f"0, or from {_FLOAT32.tiny:.2g} to {_FLOAT32.max:.2g}",
        ),
        "--top-k": (sampling.top_k, 0 <= sampling.top_k <= _MOST_TOP_K, f"from 0 (off) to {_MOST_TOP_K}"),
        "--top-p": (sampling.top_p, _FLOAT32.tiny <= sampling.top_p <= 1, f"from {_FLOAT32.tiny:.2g} to 1"),
        "--min-p": (sampling.min_p, 0 <= sampling.min_p <= 1, "from 0 to 1"),
        "--repetition-penalty": (
            penalty,
            1 / _MOST_PENALTY <= penalty <= _MOST_PENALTY,
            f"from {1 / _MOST_PENALTY:g} to {_MOST_PENALTY:g}",
        ),
    }
    for option, (value, fits, allowed) in ranges.items():
        if not fits:
            raise UsageError(f"{option} must be {allowed}, not {value}.")


def penalise(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Make tokens marked in `seen` [rows, vocab] bool less likely (CTRL, Keskar et al. 2019, arXiv:1909.05858)."""
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def probabilities(logits: Tensor, sampling: Sampling) -> Tensor:
    """What a token is drawn from, [rows, vocab] float32, for a temperature above 0; float64 stays that."""
    assert not sampling.is_greedy
    wide = logits if logits.dtype is torch.float64 else logits.float()
    # the maximum goes first, so that the smallest temperature cannot overflow
    logits = (wide - wide.amax(dim=-1, keepdim=True)) / sampling.temperature
    if 0 < sampling.top_k < logits.shape[-1]:
        logits = _keep_top_k(logits, sampling.top_k)
    if sampling.top_p < 1:
        logits = _keep_top_p(logits, sampling.top_p)
    if sampling.min_p > 0:
        logits = _keep_min_p(logits, sampling.min_p)
    return logits.softmax(dim=-1)


def _keep_top_k(logits: Tensor, k: int) -> Tensor:
    smallest = logits.topk(k, dim=-1).values[..., -1:]
    return logits.masked_fill(logits < smallest, -torch.inf)


def _keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Keep the fewest tokens that together reach p (nucleus sampling, Holtzman et al. 2020, arXiv:1904.09751)."""
    ascending, order = logits.sort(dim=-1)
    dropped = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1 - p
    dropped[..., -1] = False  # the most probable token stays, however small p is
    return logits.masked_fill(dropped.scatter(-1, order, dropped), -torch.inf)


def _keep_min_p(logits: Tensor, fraction: float) -> Tensor:
    """Keep tokens at least `fraction` as probable as the most probable one (Nguyen et al. 2024, arXiv:2407.01082)."""
    return logits.masked_fill(logits < logits.amax(dim=-1, keepdim=True) + math.log(fraction), -torch.inf)
