"""A machine of known costs for a benchmark: a clock that only work moves, a backend that only moves it, and a probe.

A token costs 1/4 s to embed, a pass 1 s for its head, and each layer of attention 1/4096 s for every key it sees: all
of it exact in floating point.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from gptfast_cli.core.backends.base import AttentionNorms, LayerCache, Linear, Norm, RopePositions
from gptfast_cli.core.bench.bandwidth import Bandwidth
from gptfast_cli.core.bench.environment import Clock
from gptfast_cli.core.config import Activation, AttentionSpec
from gptfast_cli.core.errors import OutOfMemoryError
from gptfast_cli.core.jobs.bench import Instruments
from gptfast_cli.core.schemes import Weight

EMBED_SECONDS = 1 / 4
HEAD_SECONDS = 1.0
KEY_SECONDS = 1 / 4096
BYTES_PER_SECOND = 2.0**20


@dataclass
class Machine:
    """Clock, probe and backend in one; with `most_rows` sequences its memory is full."""

    seconds: float = 0.0
    most_rows: int = 1000
    n_bytes: int = 0

    def instruments(self) -> Instruments:
        return Instruments(clock=lambda device: self.now, probe=self.probe, backend=self)

    def now(self) -> float:
        return self.seconds

    def probe(self, device: torch.device, now: Clock) -> "Machine":
        return self

    def measure(self) -> Bandwidth:
        self.seconds += 1000
        return Bandwidth(2**20, 1.0)

    def embed(self, tokens: Tensor, embedding: Weight, dtype: torch.dtype) -> Tensor:
        if len(tokens) > self.most_rows:
            raise OutOfMemoryError("Not enough memory.")
        self.seconds += tokens.numel() * EMBED_SECONDS
        return torch.zeros(*tokens.shape, embedding.shape[-1], dtype=dtype)

    def project_qkv(
        self,
        x: Tensor,
        qkv: Linear,
        *,
        norms: AttentionNorms,
        place: RopePositions,
        cache: LayerCache,
        spec: AttentionSpec,
    ) -> Tensor:
        return x.new_zeros(*x.shape[:2], spec.n_heads, spec.head_dim)

    def attend(self, q: Tensor, cache: LayerCache, *, place: RopePositions, spec: AttentionSpec) -> Tensor:
        self.seconds += int((place.positions + 1).sum()) * KEY_SECONDS
        return q.flatten(2)

    def project_output(self, heads: Tensor, output: Linear, *, residual: Tensor | None) -> Tensor:
        assert residual is not None
        return residual

    def gate_up(self, x: Tensor, gate_up: Linear, *, norm: Norm | None, activation: Activation) -> Tensor:
        return x

    def down(self, hidden: Tensor, down: Linear, *, residual: Tensor | None) -> Tensor:
        assert residual is not None
        return residual

    def add(self, x: Tensor, y: Tensor, *, norm: Norm | None, scale: float) -> Tensor:
        return x

    def head(self, x: Tensor, head: Linear, *, norm: Norm) -> Tensor:
        self.seconds += HEAD_SECONDS
        return torch.zeros(*x.shape[:-1], head.weight.shape[0])
