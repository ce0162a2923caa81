"""What a model would take on described hardware: bytes, memory and time of a step, by the roofline.

    step = sum over schemes of bytes / (bandwidth * share) + layers * seconds besides + messages between the devices

The first term is the roofline. Without the second, a layer's kernels starting, its norms and its attention, no single
share of the bandwidth fits a small and a large model: gpt-fast's figures lie between 51 and 87 % of what they read.
A message costs a latency and its bytes over the link's bandwidth, as in Thakur, Rabenseifner and Gropp 2005,
"Optimization of collective communication operations in MPICH". Arithmetic is not counted: a plan holds as long as a
step is bound by what it reads, which large batches are not.

A device holds its part of the weights, keys and values of every sequence, and buffers: the activations of one piece of
a prompt, and logits. What the runtime takes besides (a context, communication buffers, what lies between allocations)
is not counted but reserved.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch

from gptfast_cli.core.config import ModelConfig
from gptfast_cli.core.engine.runner import PREFILL_CHUNK
from gptfast_cli.core.models.kv_cache import BUCKET, KVLayout, kv_layout_of
from gptfast_cli.core.models.sharding import ModelShard, check_divides
from gptfast_cli.core.models.weights import weight_shapes
from gptfast_cli.core.quantize.allocation import Storage
from gptfast_cli.core.schemes.plain import NAME as PLAIN

LINK_LATENCY: Final = 10e-6
"""Seconds of a small all-reduce among GPUs that read one another's memory over NVLink: up to 32 kB it took 11 to 14 us
on A100s and 4 to 12 us on H100s, two to eight of them (SGLang, pull requests 2688 and 2904)."""


@dataclass(frozen=True, slots=True)
class Hardware:
    """One of several equal devices; None is not known.

    bandwidth:      bytes that it reads of its own memory in a second
    memory_bytes:   that it has
    link_bandwidth: bytes that it sends to the others in a second, to all of them together
    link_latency:   seconds of a message without its bytes
    """

    bandwidth: float | None = None
    memory_bytes: int | None = None
    link_bandwidth: float | None = None
    link_latency: float = LINK_LATENCY


@dataclass(frozen=True, slots=True)
class Efficiency:
    """How near decoding comes to the roofline.

    shares:        of the bandwidth, 0..1, by the scheme of what is read; a scheme without one has the lowest
    layer_seconds: that each layer takes besides reading
    """

    shares: Mapping[str, float]
    layer_seconds: float = 0.0

    def share(self, scheme: str) -> float:
        """The share of the bandwidth at which weights of a scheme are read."""
        return self.shares.get(scheme, min(self.shares.values()))


COMPILED: Final = Efficiency({PLAIN: 0.98, "int8": 0.84, "int4": 0.71}, layer_seconds=48e-6)
"""A GPU and compiled PyTorch: fitted to gpt-fast's five rows for one A100 (Llama-2-7B and 70B; bf16, int8, int4)."""

NATIVE: Final = Efficiency({PLAIN: 0.95})
"""A CPU and this program's engine, without pauses between layers: the median of the README's rows, 0.87 to 1.06."""


@dataclass(frozen=True, slots=True)
class StepWork:
    """What a decode step makes each of `n_devices` read and send.

    weight_bytes:  by scheme
    kv_bytes:      keys and values of the tokens so far
    n_all_reduces: of `message_bytes` each; gathered_bytes: of one all-gather, all devices' parts together
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
        """All that a device reads."""
        return sum(self.weight_bytes.values()) + self.kv_bytes


@dataclass(frozen=True, slots=True)
class StepTime:
    """Seconds of a step: reading, what layers take besides, messages; None where the hardware is not known for it."""

    read_s: float | None
    layers_s: float
    exchange_s: float | None

    @property
    def seconds(self) -> float | None:
        """All of it."""
        if self.read_s is None or self.exchange_s is None:
            return None
        return self.read_s + self.layers_s + self.exchange_s


def step_time(step: StepWork, hardware: Hardware, efficiency: Efficiency) -> StepTime:
    """How long a step takes there."""
    read = None
    if hardware.bandwidth is not None:
        weights = sum(n_bytes / efficiency.share(scheme) for scheme, n_bytes in step.weight_bytes.items())
        read = (weights + step.kv_bytes / efficiency.share(PLAIN)) / hardware.bandwidth
    return StepTime(read, step.n_layers * efficiency.layer_seconds, _exchange_seconds(step, hardware))


def all_reduce_seconds(n_bytes: int, n_devices: int, latency: float, bandwidth: float) -> float:
    """Seconds until each device has the sum of a message that each of them had; the faster one of two ways.

    One shot: everyone sends all of it to everyone, one latency. Two shots: everyone adds up a part and sends that on.
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


RESERVE: Final = 0.05
"""Share of a device's memory that stays free for the runtime."""

_LOGIT_BYTES = 4
_LOGIT_COPIES = 2  # as they come, and as probabilities


@dataclass(frozen=True, slots=True)
class ModelOutline:
    """A model without its numbers.

    dtype: of plain weights and activations; kv_dtype: that keys and values are kept in
    """

    config: ModelConfig
    storages: Mapping[str, Storage]
    dtype: torch.dtype
    kv_dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class RankPortion:
    """What one of `n_devices` has of a model.

    part:           its shape; kv_form: how it keeps keys and values
    weight_bytes:   of all its weights; stepped_bytes: by scheme, those that every step reads
    embedding:      the embedding's scheme; embedding_row_bytes: that one token reads of it
    vocab_size:     of the whole model
    """

    n_devices: int
    part: ModelConfig
    kv_layout: KVLayout
    dtype: torch.dtype
    weight_bytes: int
    stepped_bytes: Mapping[str, int]
    embedding: str
    embedding_row_bytes: int
    vocab_size: int

    def kv_bytes(self, batch_size: int, context: int) -> int:
        """Bytes of a cache with room for `context` tokens of each sequence: it grows in buckets."""
        room = -(-context // BUCKET) * BUCKET
        parts = self.kv_layout.parts.values()
        head_bytes = sum(part.slots(room) * math.prod(part.shape) * part.dtype.itemsize for part in parts)
        return batch_size * self.part.n_layers * self.part.n_kv_heads * head_bytes

    def buffer_bytes(self, batch_size: int) -> int:
        """Bytes of activations while a piece of a prompt is fed, and of the logits of a step."""
        part = self.part
        # in and out of a block and normalised; queries, keys, values and heads; gate, up and their product
        elements = 3 * part.dim + part.qkv_dim + part.q_dim + 3 * part.ffn_dim
        activations = (PREFILL_CHUNK + batch_size) * elements * self.dtype.itemsize
        return activations + batch_size * self.vocab_size * _LOGIT_BYTES * _LOGIT_COPIES

    def needed_bytes(self, batch_size: int, context: int) -> int:
        """All that it takes."""
        return self.weight_bytes + self.kv_bytes(batch_size, context) + self.buffer_bytes(batch_size)

    def longest_context(self, batch_size: int, room: int) -> int:
        """Tokens of context for which `room` bytes are enough, up to what the model can hold; 0 for none."""
        free = room - self.needed_bytes(batch_size, 0)
        n_buckets = max(0, free) // (self.kv_bytes(batch_size, BUCKET) - self.kv_bytes(batch_size, 0))
        return min(n_buckets * BUCKET, self.part.max_context)

    def largest_batch(self, context: int, room: int) -> int:
        """Sequences of so many tokens for which `room` bytes are enough."""
        none = self.needed_bytes(0, context)
        return max(0, room - none) // (self.needed_bytes(1, context) - none)

    def step(self, batch_size: int, context: int) -> StepWork:
        """What a step reads and sends behind `context` tokens of each sequence."""
        embedded = {self.embedding: batch_size * self.embedding_row_bytes}
        return StepWork(
            n_devices=self.n_devices,
            n_layers=self.part.n_layers,
            weight_bytes=Counter(self.stepped_bytes) + Counter(embedded),
            kv_bytes=batch_size * self.kv_layout.bytes_read(context),
            n_all_reduces=2 * self.part.n_layers + 1,  # behind attention, the feed-forward, and the divided embedding
            message_bytes=batch_size * self.part.dim * self.dtype.itemsize,
            gathered_bytes=batch_size * self.vocab_size * _LOGIT_BYTES,
        )


@dataclass(frozen=True, slots=True)
class PlanRow:
    """What `batch_size` sequences of `context` tokens need of each of `tp` devices, and their speed at that length.

    headroom_bytes: what is left of the memory without the reserve, below 0 where it does not fit
    max_context:    for this batch, max_batch_size: at this context; all three None where the memory is not known
    step_bytes:     that a step reads; time: that it takes
    mbu:            that of the bandwidth, 0..1; None, like tok_s of all sequences, where the time is
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
    """What each of so many devices has of a model; raises UsageError where it cannot be divided."""
    check_divides(model.config, n_devices)
    part = ModelShard(model.config, 0, n_devices).config
    sizes = {
        name: model.storages[name].n_bytes(shape, model.dtype.itemsize) for name, shape in weight_shapes(part).items()
    }
    stepped: Counter[str] = Counter()
    for name, n_bytes in sizes.items():
        if name != "embedding" or part.tied_embeddings:  # as the head it is read whole
            stepped[model.storages[name].scheme] += n_bytes
    return RankPortion(
        n_devices=n_devices,
        part=part,
        kv_layout=kv_layout_of(part, model.kv_dtype, model.dtype),
        dtype=model.dtype,
        weight_bytes=sum(sizes.values()),
        stepped_bytes=stepped,
        embedding=model.storages["embedding"].scheme,
        embedding_row_bytes=sizes["embedding"] // part.vocab_size,
        vocab_size=model.config.vocab_size,
    )


def plan_rows(
    portions: Sequence[RankPortion],
    batch_sizes: Sequence[int],
    contexts: Sequence[int],
    hardware: Hardware,
    efficiency: Efficiency,
) -> tuple[PlanRow, ...]:
    """A row for each number of devices, length and batch size."""
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
    room = None if hardware.memory_bytes is None else int(hardware.memory_bytes * (1 - RESERVE))
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
