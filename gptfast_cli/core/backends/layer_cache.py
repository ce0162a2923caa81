"""The KV cache of a layer as PyTorch's operations write and read it, in floating point or in int8.

An int8 cache takes a byte per key and value: code = round(127 x / largest), value = code * largest / 127. Keys have a
scale per channel of a block, values one per token: a few channels of all keys are much larger than the others, those
of values are not (KIVI, Liu et al. 2024, arXiv:2402.02750). A channel's scale is known once its block of KEY_BLOCK
tokens is complete, so

    a query at position t reads the keys of its own block as they were computed, those of earlier blocks as codes,

which depends on t alone, not on how a text is cut into calls, nor on rejected drafts. The last two blocks of keys are
also kept as computed: a call writes at most KEY_BLOCK tokens, and a row can be rolled back by as many.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812  (the name that everyone knows)
from torch import Tensor

from gptfast_cli.core.backends.base import KEY_BLOCK, KEY_TILE, QUAD
from gptfast_cli.core.backends.reference import matmul

_SMALLEST = 1e-30  # lower bound of the largest element; smaller elements become 0


@dataclass(frozen=True, slots=True)
class FloatCache:
    """Keys and values of one layer as they were computed, in blocks that are written in place.

    The positions from starts[row] + i * KEY_BLOCK on of a row of the batch are those of block `table[row, i]`. Slots at
    and past a row's end hold stale but finite numbers, and the table of a short row ends in blocks that are not read.

    keys, values: [blocks, kv_heads, KEY_BLOCK, head_dim]
    table:        [batch, n_keys / KEY_BLOCK] int64
    starts:       [batch] int64, multiples of KEY_BLOCK, where keys before are seen by no query; None: 0
    """

    keys: Tensor
    values: Tensor
    table: Tensor
    starts: Tensor | None = None

    def key_positions(self) -> Tensor:
        return _key_positions(self.table, self.starts)

    def write(self, k: Tensor, v: Tensor, positions: Tensor) -> None:
        blocks, slots = _blocks_at(self.table, self.starts, positions), positions % KEY_BLOCK
        self.keys[blocks, :, slots] = k
        self.values[blocks, :, slots] = v

    def scores(self, q: Tensor, positions: Tensor) -> Tensor:  # noqa: ARG002  # the same for all queries
        return matmul(q, gathered(self.keys, self.table).transpose(-1, -2))

    def read_values(self, dtype: torch.dtype) -> Tensor:  # noqa: ARG002  # they are in the dtype that computes
        return gathered(self.values, self.table)


@dataclass(frozen=True, slots=True)
class Int8Cache:
    """Keys and values of one layer in int8, as described above; else as FloatCache.

    key_codes:    [blocks, kv_heads, KEY_BLOCK / KEY_TILE, quads, KEY_TILE, QUAD] int8; quads = head_dim / QUAD,
                  rounded up
    key_scales:   [blocks, kv_heads, 1, head_dim] float32
    value_codes:  [blocks, kv_heads, KEY_BLOCK / QUAD, head_dim, QUAD] int8
    value_scales: [blocks, kv_heads, KEY_BLOCK] float32
    recent_keys:  [batch, kv_heads, 2 KEY_BLOCK, head_dim], as they were computed: position p at p % (2 KEY_BLOCK)
    """

    key_codes: Tensor
    key_scales: Tensor
    value_codes: Tensor
    value_scales: Tensor
    recent_keys: Tensor
    table: Tensor
    starts: Tensor | None = None

    def key_positions(self) -> Tensor:
        return _key_positions(self.table, self.starts)

    def write(self, k: Tensor, v: Tensor, positions: Tensor) -> None:
        """Write up to KEY_BLOCK keys and values of each row."""
        rows = torch.arange(len(k), device=k.device).unsqueeze(-1)  # [batch, 1], against positions [batch, time]
        self.recent_keys[rows, :, positions % (2 * KEY_BLOCK)] = k
        # the blocks that are written to; codes of an incomplete block are not read
        ends = torch.stack([positions[:, 0], positions[:, -1]], dim=1)
        recent = torch.unflatten(self.recent_keys, 2, (2, KEY_BLOCK))
        keys = recent[rows, :, ends // KEY_BLOCK % 2]  # [batch, 2, kv_heads, KEY_BLOCK, head_dim]
        codes, scales = quantized(keys, dim=-2)
        tiles = torch.unflatten(F.pad(codes, (0, -codes.shape[-1] % QUAD)), -1, (-1, QUAD))
        blocks = _blocks_at(self.table, self.starts, ends)
        self.key_codes[blocks] = torch.unflatten(tiles, 3, (-1, KEY_TILE)).transpose(4, 5)
        self.key_scales[blocks] = scales.unsqueeze(-2)
        codes, scales = quantized(v, dim=-1)
        blocks, slots = _blocks_at(self.table, self.starts, positions), positions % KEY_BLOCK
        self.value_codes[blocks, :, slots // QUAD, :, slots % QUAD] = codes
        self.value_scales[blocks, :, slots] = scales

    def scores(self, q: Tensor, positions: Tensor) -> Tensor:
        coded = matmul(q, self.coded_keys(q.dtype).transpose(-1, -2))
        keys = torch.arange(coded.shape[-1], device=q.device)
        recent = matmul(q, self._recent_keys_from_start().transpose(-1, -2))[..., keys % (2 * KEY_BLOCK)]
        own = self.key_positions() // KEY_BLOCK == (positions // KEY_BLOCK).unsqueeze(-1)  # [batch, time, n_keys]
        return torch.where(own.repeat(1, q.shape[2] // positions.shape[1], 1).unsqueeze(1), recent, coded)

    def _recent_keys_from_start(self) -> Tensor:
        """The recent keys [batch, kv_heads, 2 KEY_BLOCK, head_dim], those of even blocks of the table first."""
        if self.starts is None:
            return self.recent_keys
        order = (self.starts.unsqueeze(-1) // KEY_BLOCK + torch.arange(2, device=self.starts.device)) % 2
        rows = torch.arange(len(order), device=order.device).unsqueeze(-1)
        blocks = torch.unflatten(self.recent_keys, 2, (2, KEY_BLOCK))
        return blocks[rows, :, order].transpose(1, 2).flatten(2, 3)

    def coded_keys(self, dtype: torch.dtype) -> Tensor:
        """All keys as their codes have them, [batch, kv_heads, n_keys, head_dim]."""
        scales = gathered(self.key_scales, self.table)  # [batch, kv_heads, blocks, head_dim]
        codes = gathered(self.key_codes, self.table).transpose(3, 4).flatten(4)[..., : scales.shape[-1]]
        blocks = torch.unflatten(codes.flatten(2, 3).float(), 2, (-1, KEY_BLOCK))
        return (blocks * scales.unsqueeze(-2)).flatten(2, 3).to(dtype)

    def read_values(self, dtype: torch.dtype) -> Tensor:
        codes = gathered(self.value_codes, self.table).transpose(3, 4).flatten(2, 3)
        return (codes.float() * gathered(self.value_scales, self.table).unsqueeze(-1)).to(dtype)


def _key_positions(table: Tensor, starts: Tensor | None) -> Tensor:
    keys = torch.arange(table.shape[1] * KEY_BLOCK, device=table.device)
    return keys if starts is None else starts[:, None, None] + keys


def _blocks_at(table: Tensor, starts: Tensor | None, positions: Tensor) -> Tensor:
    """The block of each position [batch, time] of the rows of a table [batch, blocks]: [batch, time]."""
    return table.gather(1, (positions if starts is None else positions - starts.unsqueeze(-1)) // KEY_BLOCK)


def gathered(part: Tensor, table: Tensor) -> Tensor:
    """A part of the cache [blocks, kv_heads, slots, ...] row by row: [batch, kv_heads, all slots of a row, ...]."""
    return part.transpose(0, 1)[:, table].transpose(0, 1).flatten(2, 3)


def quantized(x: Tensor, *, dim: int) -> tuple[Tensor, Tensor]:
    """int8 codes of x, and float32 scales, one for all elements along `dim`."""
    x = x.float()
    largest = x.abs().amax(dim, keepdim=True).clamp(min=_SMALLEST)
    steps = torch.full_like(largest, 127) / largest  # 127 / tensor is rounded twice
    return torch.round(x * steps).to(torch.int8), (largest / 127).squeeze(dim)
