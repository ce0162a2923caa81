"""Tables of blocks, one for each row, of layers that share blocks (kv_blocks).

Block i of a row has its positions from i * KEY_BLOCK on. With a window, the first blocks of a row are given back as
soon as no query sees them any more, not even after a rollback.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from gptfast_cli.core.backends.base import KEY_BLOCK, LayerCache
from gptfast_cli.core.device import to_device
from gptfast_cli.core.models.kv_blocks import BlockLayout, BlockPool

_GIVEN_BACK = -1


class BlockTables:
    """The tables of all rows, whose lengths the caller knows, and the pool that their blocks come from."""

    def __init__(self, layout: BlockLayout, n_rows: int, device: torch.device, *, is_stacked: bool) -> None:
        self.layout = layout
        self.pool = BlockPool(layout, device, is_stacked=is_stacked)
        self.rows: list[list[int]] = [[] for _ in range(n_rows)]
        self.firsts = [0] * n_rows
        """How many blocks of each row have been given back."""
        self.recent: list[Tensor] = []
        """Of each layer what rows have beside their blocks, [rows, kv_heads, 2 KEY_BLOCK, head_dim]; mostly nothing."""
        if (recent := layout.kv.recent) is not None:
            shape = (n_rows, layout.group.n_kv_heads, 2 * KEY_BLOCK, *recent.shape)
            self.recent = [torch.zeros(shape, dtype=recent.dtype, device=device) for _ in layout.group.layers]
        self._device = device
        # the table of `whole` with its first positions, and what they were made from: they are written over
        self._whole: tuple[object, Tensor, Tensor | None] | None = None

    @property
    def n_bytes(self) -> int:
        """Bytes of all blocks that were ever taken, and of what rows have beside."""
        return self.pool.n_used * self.layout.n_bytes + sum(tensor.nbytes for tensor in self.recent)

    def n_missing(self, row: int, length: int, n_blocks: int) -> int:
        """Blocks that a row of `length` tokens must take to be written to, up to its block number `n_blocks`."""
        return max(0, n_blocks - len(self.rows[row])) + self._writes_shared(row, length)

    def extend(self, row: int, length: int, n_blocks: int) -> None:
        """Take what `n_missing` counts, which the pool has."""
        if self._writes_shared(row, length):
            self._own_last_block(row, length)
        self.rows[row] += [self.pool.take() for _ in range(n_blocks - len(self.rows[row]))]

    def _writes_shared(self, row: int, length: int) -> bool:
        """Whether the next token of a row belongs into a block that other rows have, too."""
        table, last = self.rows[row], length // KEY_BLOCK
        return self.firsts[row] <= last < len(table) and self.pool.is_shared(table[last])

    def _own_last_block(self, row: int, length: int) -> None:
        """Give a row a copy of the block that its next token belongs into: of the tokens that it has there."""
        last, n_tokens = divmod(length, KEY_BLOCK)
        shared, own = self.rows[row][last], self.pool.take()
        for source, target in zip(self.pool.layers(shared), self.pool.layers(own), strict=True):
            for name, part in self.layout.kv.parts.items():
                n_slots = part.slots(n_tokens)
                target[name][:, :n_slots] = source[name][:, :n_slots]
        self.rows[row][last] = own
        self.pool.give_back([shared])

    def give_back_unseen(self, row: int, length: int) -> bool:
        """Give back what a row of `length` tokens needs no more; whether there was any."""
        old, new = self.firsts[row], self.layout.group.first_kept_block(length)
        if new <= old:
            return False
        table = self.rows[row]
        self.pool.give_back(table[old:new])
        table[old:new] = [_GIVEN_BACK] * (new - old)
        self.firsts[row] = new
        return True

    def keeps(self, row: int, n_tokens: int) -> bool:
        """Whether a row has all that its first `n_tokens` need to be gone on from."""
        return n_tokens == 0 or self.firsts[row] <= self.layout.group.first_seen_block(n_tokens)

    def truncate(self, row: int, n_tokens: int) -> bool:
        """Give back the blocks after the first `n_tokens` of a row, which `keeps` them; whether there were any."""
        assert self.keeps(row, n_tokens)
        table, n_blocks = self.rows[row], -(-n_tokens // KEY_BLOCK)
        if n_blocks >= len(table):
            return False
        self.pool.give_back(table[max(n_blocks, self.firsts[row]) :])
        del table[n_blocks:]
        self.firsts[row] = min(self.firsts[row], n_blocks)
        return True

    def share(self, source: int, target: int, n_tokens: int) -> None:
        """Let a row begin with the first `n_tokens` of another that `keeps` them, by sharing its blocks."""
        assert self.keeps(source, n_tokens)
        shared = self.rows[source][: -(-n_tokens // KEY_BLOCK)]
        first = min(self.firsts[source], len(shared))
        self.pool.share(shared[first:])
        self.pool.give_back(self.rows[target][self.firsts[target] :])
        self.rows[target], self.firsts[target] = shared, first
        for recent in self.recent:
            recent[target] = recent[source]

    def swap(self, row: int, other: int) -> None:
        """Exchange two rows."""
        self.rows[row], self.rows[other] = self.rows[other], self.rows[row]
        self.firsts[row], self.firsts[other] = self.firsts[other], self.firsts[row]
        for recent in self.recent:
            recent[[row, other]] = recent[[other, row]]

    def skip(self, row: int, first: int) -> None:
        """Let an empty row begin with its block number `first`."""
        assert not self.rows[row]
        self.rows[row], self.firsts[row] = [_GIVEN_BACK] * first, first

    def layers(self, rows: slice, starts: Sequence[int], n_new: int, n_blocks: int | None = None) -> list[LayerCache]:
        """Every layer of the group for some rows, in each of which `n_new` queries follow the first `starts` tokens.

        n_blocks: of the table, which else has as many as the queries see
        """
        return self._layers(rows, *self._table(rows, starts, n_new, n_blocks))

    def whole(self, lengths: Sequence[int], capacity: int, version: int) -> list[LayerCache]:
        """Every layer for all rows, for one query after the end of each: the same tensors each time.

        capacity: in tokens, for which the table is wide enough; another one, or `forget_whole`, makes new tensors
        version:  of the tables
        """
        group = self.layout.group
        key = (version, *(() if group.window is None else map(group.first_seen_block, lengths)))
        if self._whole is None or self._whole[0] != key:
            table, starts = self._table(slice(None), lengths, 1, group.most_seen_blocks(capacity, 1))
            if self._whole is not None:
                table = self._whole[1].copy_(table)
                if starts is not None and self._whole[2] is not None:
                    starts = self._whole[2].copy_(starts)
            self._whole = key, table, starts
        return self._layers(slice(None), self._whole[1], self._whole[2])

    def forget_whole(self) -> None:
        """Let `whole` make new tensors: the table grows, or blocks have moved."""
        self._whole = None

    def whole_tensors(self) -> list[Tensor]:
        """The table of `whole` and the first positions, once they have been asked for."""
        return [] if self._whole is None else [each for each in self._whole[1:] if each is not None]

    def _table(
        self, rows: slice, starts: Sequence[int], n_new: int, n_blocks: int | None
    ) -> tuple[Tensor, Tensor | None]:
        """The blocks of rows that queries see, [rows, n_blocks] int64, and the positions where they start, [rows].

        After a row's end comes its last block once more, whose keys are masked. Without a window all start at 0: None.
        """
        group = self.layout.group
        firsts = list(map(group.first_seen_block, starts))
        if n_blocks is None:
            n_blocks = max(
                -(-(start + n_new) // KEY_BLOCK) - first for start, first in zip(starts, firsts, strict=True)
            )
        filled = []
        for table, first in zip(self.rows[rows], firsts, strict=True):
            seen = table[first : first + n_blocks] or [0]
            filled += [*seen, *seen[-1:] * (n_blocks - len(seen))]
        blocks = to_device(filled, torch.int64, self._device).view(len(firsts), n_blocks)
        if group.window is None:
            return blocks, None
        return blocks, to_device([first * KEY_BLOCK for first in firsts], torch.int64, self._device)

    def _layers(self, rows: slice, table: Tensor, starts: Tensor | None) -> list[LayerCache]:
        layers = self.pool.stacked
        recents: Sequence[Tensor | None] = [recent[rows] for recent in self.recent] or [None] * len(layers)
        pairs = zip(layers, recents, strict=True)
        return [self.layout.kv.layer(parts, recent, table, starts) for parts, recent in pairs]

    def addresses(self, n_blocks: int) -> list[int]:
        """The address of each block of each row, [rows, n_blocks]; 0 after its end and for those given back."""
        address = [memory.data_ptr() for memory in self.pool.memory[: self.pool.n_used]]
        return [
            each
            for table, first in zip(self.rows, self.firsts, strict=True)
            for each in (*[0] * first, *(address[block] for block in table[first:]), *[0] * (n_blocks - len(table)))
        ]
