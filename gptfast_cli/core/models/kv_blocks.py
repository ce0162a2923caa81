"""Blocks of the KV cache: their two layouts, in floating point and in int8, and the memory that they come from."""

import heapq
import math
import mmap
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from gptfast_cli.core.backends.base import KEY_BLOCK, KEY_TILE, QUAD, LayerCache
from gptfast_cli.core.backends.layer_cache import FloatCache, Int8Cache
from gptfast_cli.core.config import AttentionSpec, ModelConfig
from gptfast_cli.core.device import available_memory_bytes, check_fits

_ALIGNMENT = 64  # bytes, of each part of a head


@dataclass(frozen=True, slots=True)
class KVTensor:
    """A part of a layer's keys and values, [kv_heads, slots, *shape] in each block; `n_tokens` of them share a slot."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    n_tokens: int = 1

    def slots(self, n_tokens: int) -> int:
        """Slots that `n_tokens` reach into."""
        return -(-n_tokens // self.n_tokens)

    @property
    def block_bytes(self) -> int:
        """Bytes that a head has in a block."""
        return self.slots(KEY_BLOCK) * math.prod(self.shape) * self.dtype.itemsize


class KVLayout(Protocol):
    """How the keys and values of a layer are stored."""

    parts: Mapping[str, KVTensor]
    """The parts of a block."""
    recent: KVTensor | None
    """What a row has beside its blocks: the keys of its last two blocks, `2 * KEY_BLOCK` slots; None: nothing."""
    most_tokens: int
    """Maximum number of tokens written to a row in one call."""
    granularity: int
    """Prefix lengths that are a multiple of this do not depend on later tokens."""

    def layer(self, parts: Mapping[str, Tensor], recent: Tensor | None, table: Tensor) -> LayerCache:
        """The cache of a layer."""
        ...

    def bytes_read(self, n_tokens: int) -> int:
        """Bytes of a row of `n_tokens` that a step reads, over all layers."""
        ...


class FloatKVLayout:
    """Keys and values in a floating dtype, as computed."""

    recent: KVTensor | None = None
    most_tokens = sys.maxsize
    granularity = 1

    def __init__(self, config: ModelConfig, dtype: torch.dtype) -> None:
        part = KVTensor((kv_heads_of(config).head_dim,), dtype)
        self.parts: Mapping[str, KVTensor] = {"keys": part, "values": part}
        self._token_bytes = config.kv_bytes_per_token(dtype.itemsize)

    def layer(self, parts: Mapping[str, Tensor], recent: Tensor | None, table: Tensor) -> LayerCache:
        assert recent is None
        return FloatCache(**parts, table=table)

    def bytes_read(self, n_tokens: int) -> int:
        return n_tokens * self._token_bytes


class Int8KVLayout:
    """Keys and values as int8 codes and float32 scales (Int8Cache); `dtype` is that of the recent keys."""

    most_tokens = granularity = KEY_BLOCK

    def __init__(self, config: ModelConfig, dtype: torch.dtype) -> None:
        heads = kv_heads_of(config)
        n, quads = heads.head_dim, -(-heads.head_dim // QUAD)
        self.parts: Mapping[str, KVTensor] = {
            "key_codes": KVTensor((quads, KEY_TILE, QUAD), torch.int8, KEY_TILE),
            "key_scales": KVTensor((n,), torch.float32, KEY_BLOCK),
            "value_codes": KVTensor((n, QUAD), torch.int8, QUAD),
            "value_scales": KVTensor((), torch.float32),
        }
        self.recent: KVTensor | None = KVTensor((n,), dtype)
        self._heads, self._n_layers, self._itemsize = heads, config.n_layers, dtype.itemsize

    def layer(self, parts: Mapping[str, Tensor], recent: Tensor | None, table: Tensor) -> LayerCache:
        assert recent is not None
        return Int8Cache(**parts, recent_keys=recent, table=table)

    def bytes_read(self, n_tokens: int) -> int:
        heads, scale = self._heads, torch.float32.itemsize
        n_recent = n_tokens % KEY_BLOCK
        blocks = (n_tokens - n_recent) // KEY_BLOCK * (KEY_BLOCK + scale) * heads.kv_dim
        values = n_tokens * (heads.kv_dim + scale * heads.n_kv_heads)
        return self._n_layers * (blocks + n_recent * self._itemsize * heads.kv_dim + values)


def kv_heads_of(config: ModelConfig) -> AttentionSpec:
    """The attention of a layer; the KV heads of all layers are alike."""
    return config.layers[0].attention


def kv_layout_of(config: ModelConfig, kv_dtype: torch.dtype, dtype: torch.dtype) -> KVLayout:
    """The layout for keys and values in `kv_dtype`, of a model that computes in `dtype`."""
    return Int8KVLayout(config, dtype) if kv_dtype is torch.int8 else FloatKVLayout(config, kv_dtype)


Parts = Mapping[str, Tensor]
"""The parts of a layer by name."""


@dataclass(frozen=True, slots=True)
class BlockLayout:
    """The memory of a block: [layers, kv_heads], for each head one part after the other, [slots, *shape].

    So what attention reads of a block lies together.

    offsets:    of each part of a head, in bytes
    head_bytes: of all parts of a head
    row_bytes:  of what a row has beside its blocks
    """

    parts: Mapping[str, KVTensor]
    n_layers: int
    n_kv_heads: int
    offsets: Mapping[str, int]
    head_bytes: int
    row_bytes: int

    @property
    def n_bytes(self) -> int:
        """Bytes of a block."""
        return self.n_layers * self.layer_bytes

    @property
    def layer_bytes(self) -> int:
        """Bytes of a layer in a block."""
        return self.n_kv_heads * self.head_bytes

    def shape(self, part: KVTensor) -> tuple[int, ...]:
        """The shape of a part of one layer: [kv_heads, slots, *shape]."""
        return (self.n_kv_heads, part.slots(KEY_BLOCK), *part.shape)

    def layers(self, memory: Tensor) -> list[Parts]:
        """Views of a block [n_bytes] uint8, by layer."""
        heads, views = memory.view(-1, self.head_bytes), {}
        for name, part in self.parts.items():
            of_part = heads.narrow(1, self.offsets[name], part.block_bytes).view(part.dtype)
            views[name] = of_part.view(self.n_layers, *self.shape(part))
        return [{name: view[layer] for name, view in views.items()} for layer in range(self.n_layers)]


def block_layout(config: ModelConfig, layout: KVLayout) -> BlockLayout:
    """The memory of a block of a model's keys and values."""
    offsets, end = {}, 0
    for name, part in layout.parts.items():
        offsets[name] = end
        end += -(-part.block_bytes // _ALIGNMENT) * _ALIGNMENT
    n_kv_heads = kv_heads_of(config).n_kv_heads
    row_bytes = 0 if layout.recent is None else config.n_layers * n_kv_heads * 2 * layout.recent.block_bytes
    return BlockLayout(layout.parts, config.n_layers, n_kv_heads, offsets, end, row_bytes)


_HUGE_PAGE = 2 << 20
LARGE_BYTES = 64 << 20
_MOST_SPARE_BYTES = 256 << 20
SMALLER = "Take fewer rows or tokens: --batch-size, --max-context, --kv-dtype int8"


def _memory(n_bytes: int) -> Tensor:
    """Memory of the system, [n_bytes] uint8, on huge pages where it has any: attention jumps from block to block.

    Pages that are never touched take none. Raises MemoryError.
    """
    try:
        pages = mmap.mmap(-1, n_bytes + _HUGE_PAGE)
    except OSError as error:
        raise MemoryError("The system has no memory for the KV cache.") from error
    if hasattr(mmap, "MADV_HUGEPAGE"):
        pages.madvise(mmap.MADV_HUGEPAGE)
    memory = torch.frombuffer(pages, dtype=torch.uint8)
    return memory[-memory.data_ptr() % _HUGE_PAGE :][:n_bytes]


class BlockPool:
    """Blocks that rows take, share and give back, by number.

    Memory comes in slabs of as many blocks as there are already, up to _MOST_SPARE_BYTES; of a slab on a CPU only the
    blocks that are used take memory. A slab is a piece of memory for kernels that find each block by its address. The
    operations of PyTorch find them by their number instead, and need all blocks of a layer in one tensor: so growing
    moves stacked blocks.
    """

    def __init__(self, layout: BlockLayout, device: torch.device, *, is_stacked: bool) -> None:
        self.n_used = 0  # blocks that were ever taken; the others have not been touched
        self.memory: list[Tensor] = []  # of each block, [n_bytes] uint8; none if they are stacked
        self.stacked: list[dict[str, Tensor]] = []  # of each layer, [blocks, kv_heads, slots, *shape]; or none
        self._layout, self._device, self._is_stacked = layout, device, is_stacked
        self._n_owners: list[int] = []
        self._free: list[int] = []  # a heap, to take the lowest first: so few blocks are ever used

    def reserve(self, n_blocks: int, what: str, *, with_spare: bool) -> bool:
        """Have this many free blocks, for `what`; whether memory was taken for them.

        Raises OutOfMemoryError if a CPU's memory has no room for them: it would end the process.
        """
        n_all, block_bytes = len(self._n_owners), self._layout.n_bytes
        n_new = n_missing = n_blocks - len(self._free) - (n_all - self.n_used)
        if n_missing <= 0:
            return False
        if with_spare:
            n_new = max(n_missing, min(n_all, _MOST_SPARE_BYTES // block_bytes))
        if self._device.type == "cpu" and n_new * block_bytes >= LARGE_BYTES:  # asking takes longer than a little
            free = available_memory_bytes()
            if free is not None and n_new * block_bytes > free:
                n_new = n_missing
            check_fits(n_new * block_bytes, what, SMALLER, free)
        if self._is_stacked:
            self._stack(n_all + n_new)
        else:
            self.memory += _memory(n_new * block_bytes).view(n_new, block_bytes).unbind(0)
        self._n_owners += [0] * n_new
        return True

    def _stack(self, n_blocks: int) -> None:
        self.stacked = self.stacked or [{} for _ in range(self._layout.n_layers)]
        for layer in self.stacked:
            for name, part in self._layout.parts.items():
                grown = torch.empty(n_blocks, *self._layout.shape(part), dtype=part.dtype, device=self._device)
                if self.n_used:
                    grown[: self.n_used] = layer[name][: self.n_used]
                layer[name] = grown

    def layers(self, block: int) -> list[Parts]:
        """The parts of a block, by layer, each [kv_heads, slots, *shape]."""
        if self._is_stacked:
            return [{name: part[block] for name, part in layer.items()} for layer in self.stacked]
        return self._layout.layers(self.memory[block])

    def take(self) -> int:
        """A free block, filled with zeros: a masked slot has weight 0, and 0 times NaN would be NaN."""
        if self._free:
            block = heapq.heappop(self._free)
        else:
            block = self.n_used
            self.n_used += 1
        self._n_owners[block] = 1
        if self._is_stacked:
            for part in (part for layer in self.layers(block) for part in layer.values()):
                part.zero_()
        else:
            self.memory[block].zero_()
        return block

    def share(self, blocks: Sequence[int]) -> None:
        """Count one more owner of each block."""
        for block in blocks:
            self._n_owners[block] += 1

    def give_back(self, blocks: Sequence[int]) -> None:
        """Count one owner less of each block; those without any are free."""
        for block in blocks:
            self._n_owners[block] -= 1
            if not self._n_owners[block]:
                heapq.heappush(self._free, block)

    def is_shared(self, block: int) -> bool:
        """Whether a block has several owners."""
        return self._n_owners[block] > 1
