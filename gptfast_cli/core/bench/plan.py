"""Bytes, memory and time of a decode step on described hardware, by the roofline model.

    step = sum over schemes of bytes / (bandwidth * share) + layers * layer_seconds + communication

The first term is the roofline. The second covers kernel launches, norms and attention: without it, no single share of
the bandwidth fits a small and a large model (gpt-fast's figures lie between 51 and 87 % of the roofline). A message
costs a latency plus its bytes / link bandwidth (Thakur, Rabenseifner and Gropp 2005, "Optimization of collective
communication operations in MPICH"). Arithmetic is not counted: a plan holds while a step is memory-bound, which large
batches are not.

A device holds its shard of the weights, the keys and values of every sequence, and buffers: the activations of one
prefill chunk, and logits. Other memory of the runtime (context, communication buffers, fragmentation) is covered by a
reserve.
"""

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch

from gptfast_cli.core.backends.base import KEY_BLOCK
from gptfast_cli.core.config import ModelConfig
from gptfast_cli.core.engine.runner import PREFILL_CHUNK
from gptfast_cli.core.models.kv_blocks import BlockLayout, block_layouts
from gptfast_cli.core.models.sharding import ModelShard, check_divides
from gptfast_cli.core.schemes import WHOLE, Weight
from gptfast_cli.core.schemes.plain import NAME as PLAIN

RESERVE: Final = 0.05
"""Share of a device's memory reserved for the runtime."""

LINK_LATENCY: Final = 10e-6
"""Seconds of a small all-reduce among GPUs over NVLink: up to 32 kB it took 11 to 14 us
on A100s and 4 to 12 us on H100s, two to eight of them (SGLang, pull requests 2688 and 2904)."""


@dataclass(frozen=True, slots=True)
class Hardware:
    """One of several equal devices; None is unknown.

    bandwidth:      memory read bandwidth, bytes per second
    memory_bytes:   memory of the device
    link_bandwidth: bytes per second sent to all other devices together
    link_latency:   seconds of an empty message
    reserve:        share of the memory that is left to the runtime
    is_measured:    the bandwidth was measured on this machine
    """

    bandwidth: float | None = None
    memory_bytes: int | None = None
    link_bandwidth: float | None = None
    link_latency: float = LINK_LATENCY
    reserve: float = RESERVE
    is_measured: bool = False

    @property
    def bandwidth_gbps(self) -> float | None:
        """Memory read bandwidth, GB/s."""
        return None if self.bandwidth is None else self.bandwidth / 1e9

    @property
    def link_gbps(self) -> float | None:
        """Link bandwidth, GB/s."""
        return None if self.link_bandwidth is None else self.link_bandwidth / 1e9

    @property
    def usable_bytes(self) -> int | None:
        """Bytes of memory without the reserve."""
        return None if self.memory_bytes is None else int(self.memory_bytes * (1 - self.reserve))


@dataclass(frozen=True, slots=True)
class Efficiency:
    """How close decoding comes to the roofline.

    shares:        reached share of the bandwidth, 0..1, by scheme; an unlisted scheme has the lowest one
    layer_seconds: time of each layer in addition to reading
    """

    shares: Mapping[str, float]
    layer_seconds: float = 0.0

    def share(self, scheme: str) -> float:
        """Reached share of the bandwidth for weights of a scheme."""
        return self.shares.get(scheme, min(self.shares.values()))


COMPILED: Final = Efficiency({PLAIN: 0.98, "int8": 0.84, "int4": 0.71}, layer_seconds=48e-6)
"""A GPU and compiled PyTorch: fitted to gpt-fast's five rows for one A100 (Llama-2-7B and 70B; bf16, int8, int4)."""

NATIVE: Final = Efficiency({PLAIN: 0.95})
"""This program's CPU engine, which has no pauses between layers: the median of the README's rows, 0.87 to 1.06."""


@dataclass(frozen=True, slots=True)
class StepWork:
    """Bytes that each of `n_devices` reads and sends in a decode step.

    weight_bytes:   by scheme
    kv_bytes:       keys and values of the tokens so far
    n_all_reduces:  of `message_bytes` each
    gathered_bytes: of one all-gather of the logits, all devices together
    """

    n_devices: int
    n_layers: int
    weight_bytes: Mapping[str, int]
    kv_bytes: int
    n_all_reduces: int = 0
    message_bytes: int = 0
    gathered_bytes: int = 0

    @property
    def n_bytes(self) -> int:
        """Bytes that a device reads."""
        return sum(self.weight_bytes.values()) + self.kv_bytes


@dataclass(frozen=True, slots=True)
class StepTime:
    """Seconds of a step: reading, per-layer overhead, communication; None if the hardware is unknown."""

    read_s: float | None
    layers_s: float
    exchange_s: float | None

    @property
    def seconds(self) -> float | None:
        """Total seconds of a step."""
        if self.read_s is None or self.exchange_s is None:
            return None
        return self.read_s + self.layers_s + self.exchange_s


def step_time(step: StepWork, hardware: Hardware, efficiency: Efficiency) -> StepTime:
    """Time of a step on the hardware."""
    read = None
    if hardware.bandwidth is not None:
        weights = sum(n_bytes / efficiency.share(scheme) for scheme, n_bytes in step.weight_bytes.items())
        read = (weights + step.kv_bytes / efficiency.share(PLAIN)) / hardware.bandwidth
    return StepTime(read, step.n_layers * efficiency.layer_seconds, _exchange_seconds(step, hardware))


def all_reduce_seconds(n_bytes: int, n_devices: int, latency: float, bandwidth: float) -> float:
    """Seconds of an all-reduce of `n_bytes`, by the faster of two algorithms.

    One-shot: each device sends its whole message to all others. Two-shot: reduce-scatter, then all-gather.
    """
    one_shot = latency + (n_devices - 1) * n_bytes / bandwidth
    two_shots = 2 * latency + 2 * (n_devices - 1) / n_devices * n_bytes / bandwidth
    return min(one_shot, two_shots)


def _exchange_seconds(step: StepWork, hardware: Hardware) -> float | None:
    if step.n_devices == 1:
        return 0.0
    latency, bandwidth = hardware.link_latency, hardware.link_bandwidth
    if bandwidth is None:
        return None
    n = step.n_devices
    seconds = step.n_all_reduces * all_reduce_seconds(step.message_bytes, n, latency, bandwidth)
    if step.gathered_bytes:
        seconds += latency + (n - 1) / n * step.gathered_bytes / bandwidth
    return seconds


_LOGIT_BYTES = 4
_LOGIT_COPIES = 2  # logits and probabilities


@dataclass(frozen=True, slots=True)
class ModelOutline:
    """A model without its numbers.

    weights:  on the meta device, by name
    dtype:    of plain weights and activations
    kv_dtype: of the KV cache
    """

    config: ModelConfig
    weights: Mapping[str, Weight]
    dtype: torch.dtype
    kv_dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class RankPortion:
    """The shard of a model on one of `n_devices`.

    part:                shape of the shard
    kv_layouts:          layout of its KV cache, of each group of layers
    weight_bytes:        of all its weights
    stepped_bytes:       weights that every step reads, by scheme
    embedding:           scheme of the embedding
    embedding_row_bytes: bytes of one embedding row
    vocab_size:          of the whole model
    """

    n_devices: int
    part: ModelConfig
    kv_layouts: Sequence[BlockLayout]
    dtype: torch.dtype
    weight_bytes: int
    stepped_bytes: Mapping[str, int]
    embedding: str
    embedding_row_bytes: int
    vocab_size: int

    def kv_bytes(self, batch_size: int, context: int) -> int:
        """Bytes of a KV cache for `context` tokens of each sequence, rounded up to blocks.

        Layers with a window hold what a rollback may need, and of one sequence a prefill chunk.
        """
        n_bytes = 0
        for layout in self.kv_layouts:
            n_each = layout.group.most_kept_blocks(context, 1)
            n_new = min(PREFILL_CHUNK, layout.kv.most_tokens)
            n_more = layout.group.most_kept_blocks(context, n_new) - n_each if batch_size else 0
            n_bytes += (batch_size * n_each + n_more) * layout.n_bytes + batch_size * layout.row_bytes
        return n_bytes

    def buffer_bytes(self, batch_size: int) -> int:
        """Bytes of the activations of a prefill chunk, and of the logits of a step."""
        part = self.part
        # in and out of a block and normalized; queries, keys, values and heads; gate, up and their product
        of_kinds = [kind.attention.qkv_dim + kind.attention.q_dim + 3 * kind.feed_forward.dim for kind in part.kinds]
        elements = 3 * part.dim + max(of_kinds)
        activations = (PREFILL_CHUNK + batch_size) * elements * self.dtype.itemsize
        return activations + batch_size * self.vocab_size * _LOGIT_BYTES * _LOGIT_COPIES

    def needed_bytes(self, batch_size: int, context: int) -> int:
        """Bytes of weights, KV cache and buffers."""
        return self.weight_bytes + self.kv_bytes(batch_size, context) + self.buffer_bytes(batch_size)

    def longest_context(self, batch_size: int, room: int) -> int:
        """Longest context that fits into `room` bytes, at most the model's maximum; 0 if none fits."""
        n_most = -(-self.part.max_context // KEY_BLOCK)
        fitting = range(1, n_most + 1)  # in blocks, of which each takes as much memory as the one before, or more
        n_blocks = bisect_right(fitting, room, key=lambda n: self.needed_bytes(batch_size, n * KEY_BLOCK))
        return min(n_blocks * KEY_BLOCK, self.part.max_context)

    def largest_batch(self, context: int, room: int) -> int:
        """Largest batch of sequences of `context` tokens that fits into `room` bytes."""
        first, second = (self.needed_bytes(n, context) for n in (1, 2))
        return max(0, (room - first) // (second - first) + 1)

    def step(self, batch_size: int, context: int) -> StepWork:
        """Bytes read and sent by a step after `context` tokens of each sequence."""
        embedded = {self.embedding: batch_size * self.embedding_row_bytes}
        return StepWork(
            n_devices=self.n_devices,
            n_layers=self.part.n_layers,
            weight_bytes=Counter(self.stepped_bytes) + Counter(embedded),
            kv_bytes=batch_size * sum(layout.kv.bytes_read(context) for layout in self.kv_layouts),
            n_all_reduces=2 * self.part.n_layers + 1,  # after attention, feed-forward and the sharded embedding
            message_bytes=batch_size * self.part.dim * self.dtype.itemsize,
            gathered_bytes=batch_size * self.vocab_size * _LOGIT_BYTES,
        )


@dataclass(frozen=True, slots=True)
class PlanRow:
    """Memory of each of `tp` devices for `batch_size` sequences of `context` tokens, and the speed at that length.

    headroom_bytes: memory minus reserve minus need, below 0 where it does not fit; None if memory is unknown
    max_context:    longest context at this batch size; None likewise
    max_batch_size: largest batch at this context; None likewise
    step_bytes:     bytes that a step reads
    time:           of a step
    tok_s:          tokens per second of all sequences; None if the time is unknown
    mbu:            reached share of the bandwidth, 0..1; None likewise
    """

    tp: int
    batch_size: int
    context: int
    weight_bytes: int
    kv_bytes: int
    buffer_bytes: int
    headroom_bytes: int | None
    max_context: int | None
    max_batch_size: int | None
    step_bytes: int
    time: StepTime
    tok_s: float | None
    mbu: float | None

    @property
    def fits(self) -> bool | None:
        """Whether the memory is enough."""
        return None if self.headroom_bytes is None else self.headroom_bytes >= 0


def portion(model: ModelOutline, n_devices: int) -> RankPortion:
    """The shard of each of `n_devices` devices; raises UsageError if the model cannot be sharded."""
    check_divides(model.config, n_devices)
    shard = ModelShard(model.config, 0, n_devices)
    part = shard.config
    sizes = {
        name: _n_bytes(model.weights[name].block(shard.block(name) or WHOLE), model.dtype) for name in model.weights
    }
    stepped: Counter[str] = Counter()
    for name, n_bytes in sizes.items():
        if name != "embedding" or part.tied_embeddings:  # a tied embedding is read whole, as the head
            stepped[model.weights[name].scheme] += n_bytes
    return RankPortion(
        n_devices=n_devices,
        part=part,
        kv_layouts=block_layouts(part, model.kv_dtype, model.dtype),
        dtype=model.dtype,
        weight_bytes=sum(sizes.values()),
        stepped_bytes=stepped,
        embedding=model.weights["embedding"].scheme,
        embedding_row_bytes=sizes["embedding"] // part.vocab_size,
        vocab_size=model.config.vocab_size,
    )


def _n_bytes(weight: Weight, dtype: torch.dtype) -> int:
    """Bytes of a weight in memory, a plain one in `dtype`."""
    return dtype.itemsize * math.prod(weight.shape) if weight.scheme == PLAIN else weight.n_bytes


def plan_rows(
    portions: Sequence[RankPortion],
    batch_sizes: Sequence[int],
    contexts: Sequence[int],
    hardware: Hardware,
    efficiency: Efficiency,
) -> tuple[PlanRow, ...]:
    """A row for each number of devices, context and batch size."""
    return tuple(
        _row(portion, batch_size, context, hardware, efficiency)
        for portion in portions
        for context in contexts
        for batch_size in batch_sizes
    )


def _row(portion: RankPortion, batch_size: int, context: int, hardware: Hardware, efficiency: Efficiency) -> PlanRow:
    step = portion.step(batch_size, context)
    time = step_time(step, hardware, efficiency)
    seconds, bandwidth = time.seconds, hardware.bandwidth
    room = hardware.usable_bytes
    return PlanRow(
        tp=portion.n_devices,
        batch_size=batch_size,
        context=context,
        weight_bytes=portion.weight_bytes,
        kv_bytes=portion.kv_bytes(batch_size, context),
        buffer_bytes=portion.buffer_bytes(batch_size),
        headroom_bytes=None if room is None else room - portion.needed_bytes(batch_size, context),
        max_context=None if room is None else portion.longest_context(batch_size, room),
        max_batch_size=None if room is None else portion.largest_batch(context, room),
        step_bytes=step.n_bytes,
        time=time,
        tok_s=None if seconds is None else batch_size / seconds,
        mbu=None if seconds is None or bandwidth is None else step.n_bytes / seconds / bandwidth,
    )
