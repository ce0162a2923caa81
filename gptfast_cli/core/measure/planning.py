"""What a model needs of each device, whether it fits and how fast it should decode, from its shape alone.

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
from gptfast_cli.core.decode.runner import PREFILL_CHUNK
from gptfast_cli.core.measure.step_time import Hardware, Reach, Step, StepTime, step_time
from gptfast_cli.core.model.cache import BUCKET
from gptfast_cli.core.model.cache_forms import Form, form_of
from gptfast_cli.core.model.share import Share, check_divides
from gptfast_cli.core.model.weights import weight_shapes
from gptfast_cli.core.quant.allocation import Storage

RESERVE: Final = 0.05
"""Share of a device's memory that stays free for the runtime."""

_LOGIT_BYTES = 4
_LOGIT_COPIES = 2  # as they come, and as probabilities


@dataclass(frozen=True, slots=True)
class Outline:
    """A model without its numbers.

    dtype: of plain weights and activations; kv_dtype: that keys and values are kept in
    """

    config: ModelConfig
    storages: Mapping[str, Storage]
    dtype: torch.dtype
    kv_dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class Portion:
    """What one of `n_devices` has of a model.

    part:           its shape; kv_form: how it keeps keys and values
    weight_bytes:   of all its weights; stepped_bytes: by scheme, those that every step reads
    embedding:      the embedding's scheme; embedding_row_bytes: that one token reads of it
    vocab_size:     of the whole model
    """

    n_devices: int
    part: ModelConfig
    kv_form: Form
    dtype: torch.dtype
    weight_bytes: int
    stepped_bytes: Mapping[str, int]
    embedding: str
    embedding_row_bytes: int
    vocab_size: int

    def kv_bytes(self, batch_size: int, context: int) -> int:
        """Bytes of a cache with room for `context` tokens of each sequence: it grows in buckets."""
        room = -(-context // BUCKET) * BUCKET
        parts = self.kv_form.parts.values()
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

    def step(self, batch_size: int, context: int) -> Step:
        """What a step reads and sends behind `context` tokens of each sequence."""
        embedded = {self.embedding: batch_size * self.embedding_row_bytes}
        return Step(
            n_devices=self.n_devices,
            n_layers=self.part.n_layers,
            weight_bytes=Counter(self.stepped_bytes) + Counter(embedded),
            kv_bytes=batch_size * self.kv_form.bytes_read(context),
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


def portion(model: Outline, n_devices: int) -> Portion:
    """What each of so many devices has of a model; raises UsageError where it cannot be divided."""
    check_divides(model.config, n_devices)
    part = Share(model.config, 0, n_devices).config
    sizes = {
        name: model.storages[name].n_bytes(shape, model.dtype.itemsize) for name, shape in weight_shapes(part).items()
    }
    stepped: Counter[str] = Counter()
    for name, n_bytes in sizes.items():
        if name != "embedding" or part.tied_embeddings:  # as the head it is read whole
            stepped[model.storages[name].scheme] += n_bytes
    return Portion(
        n_devices=n_devices,
        part=part,
        kv_form=form_of(part, model.kv_dtype, model.dtype),
        dtype=model.dtype,
        weight_bytes=sum(sizes.values()),
        stepped_bytes=stepped,
        embedding=model.storages["embedding"].scheme,
        embedding_row_bytes=sizes["embedding"] // part.vocab_size,
        vocab_size=model.config.vocab_size,
    )


def plan_rows(
    portions: Sequence[Portion], batch_sizes: Sequence[int], contexts: Sequence[int], hardware: Hardware, reach: Reach
) -> tuple[PlanRow, ...]:
    """A row for each number of devices, length and batch size."""
    return tuple(
        _row(portion, batch_size, context, hardware, reach)
        for portion in portions
        for context in contexts
        for batch_size in batch_sizes
    )


def _row(portion: Portion, batch_size: int, context: int, hardware: Hardware, reach: Reach) -> PlanRow:
    step = portion.step(batch_size, context)
    time = step_time(step, hardware, reach)
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
