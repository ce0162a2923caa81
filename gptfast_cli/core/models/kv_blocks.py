"""Blocks of the KV cache: the groups of layers that share them, their layouts, the memory that they come from."""

import heapq
import math
import mmap
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import torch
from torch import Tensor

from gptfast_cli.core.backends.base import KEY_BLOCK, KEY_TILE, QUAD, LayerCache
from gptfast_cli.core.backends.layer_cache import FloatCache, Int8Cache
from gptfast_cli.core.config import ModelConfig
from gptfast_cli.core.memory import available_memory_bytes, check_fits

_ALIGNMENT = 64  # bytes, of each part of a head

MOST_ROLLBACK: Final = KEY_BLOCK
"""Tokens that a row can be rolled back by, where it does not keep all: those of a block.

An int8 cache has the recent keys of so many, and layers with a window keep the blocks that a query so far back sees.
"""


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


@dataclass(frozen=True, slots=True)
class KVGroup:
    """Layers whose KV heads are alike and see equally far: their keys and values share blocks.

    layers: their numbers
    window: tokens that a query sees, itself included; None: all of them
    """

    layers: tuple[int, ...]
    n_kv_heads: int
    head_dim: int
    window: int | None

    @property
    def kv_dim(self) -> int:
        """Width of all key heads of a layer together."""
        return self.n_kv_heads * self.head_dim

    def first_seen_block(self, n_tokens: int) -> int:
        """The first block that a query after `n_tokens` sees a key of."""
        return 0 if self.window is None else max(0, n_tokens + 1 - self.window) // KEY_BLOCK

    def first_kept_block(self, n_tokens: int) -> int:
        """The first block that a row of `n_tokens` needs, which may be rolled back by MOST_ROLLBACK."""
        return self.first_seen_block(n_tokens - MOST_ROLLBACK)

    def n_seen(self, n_tokens: int) -> int:
        """How many of the last of `n_tokens` a query after them sees."""
        return n_tokens if self.window is None else min(n_tokens, self.window - 1)

    def most_seen_blocks(self, n_tokens: int, n_new: int) -> int:
        """Most blocks in which `n_new` adjacent queries of a row of up to `n_tokens` see keys."""
        return self._most_blocks(n_tokens, n_new, 0)

    def most_kept_blocks(self, n_tokens: int, n_new: int) -> int:
        """Most blocks of a row that `n_new` tokens at a time are written to, up to `n_tokens`."""
        return self._most_blocks(n_tokens, n_new, MOST_ROLLBACK)

    def _most_blocks(self, n_tokens: int, n_new: int, n_before: int) -> int:
        n_blocks = -(-n_tokens // KEY_BLOCK)
        if self.window is None:
            return n_blocks
        n_adjacent = n_before + self.window - 1 + n_new
        return min(n_blocks, (n_adjacent + 2 * KEY_BLOCK - 2) // KEY_BLOCK)  # wherever in a block they begin


def kv_groups(config: ModelConfig) -> tuple[KVGroup, ...]:
    """The groups of a model's layers, in the order of their first layers."""
    groups: dict[tuple[int, int, int | None], list[int]] = {}
    for number, layer in enumerate(config.layers):
        attention = layer.attention
        groups.setdefault((attention.n_kv_heads, attention.head_dim, attention.window), []).append(number)
    return tuple(KVGroup(tuple(layers), *kind) for kind, layers in groups.items())


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

    def layer(
        self, parts: Mapping[str, Tensor], recent: Tensor | None, table: Tensor, starts: Tensor | None
    ) -> LayerCache:
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

    def __init__(self, group: KVGroup, dtype: torch.dtype) -> None:
        part = KVTensor((group.head_dim,), dtype)
        self.parts: Mapping[str, KVTensor] = {"keys": part, "values": part}
        self._group = group
        self._token_bytes = 2 * len(group.layers) * group.kv_dim * dtype.itemsize

    def layer(
        self, parts: Mapping[str, Tensor], recent: Tensor | None, table: Tensor, starts: Tensor | None
    ) -> LayerCache:
        assert recent is None
        return FloatCache(**parts, table=table, starts=starts)

    def bytes_read(self, n_tokens: int) -> int:
        return self._group.n_seen(n_tokens) * self._token_bytes


class Int8KVLayout:
    """Keys and values as int8 codes and float32 scales (Int8Cache); `dtype` is that of the recent keys."""

    most_tokens = granularity = KEY_BLOCK

    def __init__(self, group: KVGroup, dtype: torch.dtype) -> None:
        n, quads = group.head_dim, -(-group.head_dim // QUAD)
        self.parts: Mapping[str, KVTensor] = {
            "key_codes": KVTensor((quads, KEY_TILE, QUAD), torch.int8, KEY_TILE),
            "key_scales": KVTensor((n,), torch.float32, KEY_BLOCK),
            "value_codes": KVTensor((n, QUAD), torch.int8, QUAD),
            "value_scales": KVTensor((), torch.float32),
        }
        self.recent: KVTensor | None = KVTensor((n,), dtype)
        self._group, self._itemsize = group, dtype.itemsize

    def layer(
        self, parts: Mapping[str, Tensor], recent: Tensor | None, table: Tensor, starts: Tensor | None
    ) -> LayerCache:
        assert recent is not None
        return Int8Cache(**parts, recent_keys=recent, table=table, starts=starts)

    def bytes_read(self, n_tokens: int) -> int:
        group, scale = self._group, torch.float32.itemsize
        n_seen = group.n_seen(n_tokens)
        n_recent = min(n_tokens % KEY_BLOCK, n_seen)
        n_coded = n_seen - n_recent
        codes = (n_coded + -(-n_coded // KEY_BLOCK) * scale) * group.kv_dim
        values = n_seen * (group.kv_dim + scale * group.n_kv_heads)
        return len(group.layers) * (codes + n_recent * self._itemsize * group.kv_dim + values)


Parts = Mapping[str, Tensor]
"""The parts of a layer by name."""


@dataclass(frozen=True, slots=True)
class BlockLayout:
    """The memory of a block of a group: [layers, kv_heads], for each head one part after the other, [slots, *shape].

    So what attention reads of a block lies together.

    offsets:    of each part of a head, in bytes
    head_bytes: of all parts of a head
    """

    group: KVGroup
    kv: KVLayout
    offsets: Mapping[str, int]
    head_bytes: int

    @property
    def layer_bytes(self) -> int:
        """Bytes of a layer in a block."""
        return self.group.n_kv_heads * self.head_bytes

    @property
    def n_bytes(self) -> int:
        """Bytes of a block."""
        return len(self.group.layers) * self.layer_bytes

    @property
    def row_bytes(self) -> int:
        """Bytes of what a row has beside its blocks."""
        recent, group = self.kv.recent, self.group
        return 0 if recent is None else len(group.layers) * group.n_kv_heads * 2 * recent.block_bytes

    def shape(self, part: KVTensor) -> tuple[int, ...]:
        """The shape of a part of one layer: [kv_heads, slots, *shape]."""
        return (self.group.n_kv_heads, part.slots(KEY_BLOCK), *part.shape)

    def layers(self, memory: Tensor) -> list[Parts]:
        """Views of a block [n_bytes] uint8, by layer."""
        heads, views, n_layers = memory.view(-1, self.head_bytes), {}, len(self.group.layers)
        for name, part in self.kv.parts.items():
            of_part = heads.narrow(1, self.offsets[name], part.block_bytes).view(part.dtype)
            views[name] = of_part.view(n_layers, *self.shape(part))
        return [{name: view[layer] for name, view in views.items()} for layer in range(n_layers)]


def block_layouts(config: ModelConfig, kv_dtype: torch.dtype, dtype: torch.dtype) -> tuple[BlockLayout, ...]:
    """The layout of each group, for keys and values in `kv_dtype` of a model that computes in `dtype`."""
    return tuple(_block_layout(group, kv_dtype, dtype) for group in kv_groups(config))


def _block_layout(group: KVGroup, kv_dtype: torch.dtype, dtype: torch.dtype) -> BlockLayout:
    layout: KVLayout = Int8KVLayout(group, dtype) if kv_dtype is torch.int8 else FloatKVLayout(group, kv_dtype)
    offsets, end = {}, 0
    for name, part in layout.parts.items():
        offsets[name] = end
        end += -(-part.block_bytes // _ALIGNMENT) * _ALIGNMENT
    return BlockLayout(group, layout, offsets, end)


_HUGE_PAGE = 2 << 20
# shared memory, which mmap takes by default, has no huge pages on most systems
_PRIVATE = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MADV_HUGEPAGE") else {}
LARGE_BYTES = 64 << 20
_MOST_SPARE_BYTES = 256 << 20
SMALLER = "Take fewer rows or tokens: --batch-size, --max-context, --kv-dtype int8"


def _memory(n_bytes: int) -> Tensor:
    """Memory of the system, [n_bytes] uint8, on huge pages where it has any: attention jumps from block to block.

    Pages that are never touched take none. Raises MemoryError.
    """
    try:
        pages = mmap.mmap(-1, n_bytes + _HUGE_PAGE, **_PRIVATE)
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

    def missing_bytes(self, n_blocks: int) -> int:
        """Bytes of memory to be taken so that this many blocks are free."""
        return max(0, n_blocks - len(self._free) - (len(self._n_owners) - self.n_used)) * self._layout.n_bytes

    def reserve(self, n_blocks: int, what: str, *, with_spare: bool, other_bytes: int = 0) -> bool:
        """Have this many free blocks, for `what`; whether memory was taken for them.

        other_bytes: to be taken for the same beside these

        Raises OutOfMemoryError if a CPU's memory has no room for them: it would end the process.
        """
        n_all, block_bytes = len(self._n_owners), self._layout.n_bytes
        n_new = n_missing = self.missing_bytes(n_blocks) // block_bytes
        if not n_missing:
            return False
        if with_spare:
            n_new = max(n_missing, min(n_all, _MOST_SPARE_BYTES // block_bytes))
        # asking takes longer than a little memory
        if self._device.type == "cpu" and n_new * block_bytes + other_bytes >= LARGE_BYTES:
            free = available_memory_bytes()
            if free is not None and n_new * block_bytes + other_bytes > free:
                n_new = n_missing
            check_fits(n_new * block_bytes + other_bytes, what, SMALLER, free)
        if self._is_stacked:
            self._stack(n_all + n_new)
        else:
            self.memory += _memory(n_new * block_bytes).view(n_new, block_bytes).unbind(0)
        self._n_owners += [0] * n_new
        return True

    def _stack(self, n_blocks: int) -> None:
        self.stacked = self.stacked or [{} for _ in self._layout.group.layers]
        for layer in self.stacked:
            for name, part in self._layout.kv.parts.items():
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
