"""The KV cache of all layers, in blocks of KEY_BLOCK tokens (kv_blocks).

Each row has a table of blocks for each group of layers (PagedAttention, Kwon et al. 2023, arXiv:2309.06180). A row
takes a block when it needs one; rows that begin alike share blocks, and a row that writes into a shared block gets a
copy of it first. Rows stand at different positions, and to roll a row back is to shorten its length.

Layers with a window give back the blocks that no query sees any more, so that their part of the cache grows with the
window and not with the text. A row can still be rolled back by MOST_ROLLBACK tokens, but not to any length: what a
shorter text would see may be gone (`reusable_length`).
"""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from gptfast_cli.core.backends.base import KEY_BLOCK, LayerCache
from gptfast_cli.core.config import ModelConfig
from gptfast_cli.core.memory import check_fits
from gptfast_cli.core.models.block_tables import BlockTables
from gptfast_cli.core.models.kv_blocks import LARGE_BYTES, SMALLER, KVTensor, block_layouts

_FIXED_TOKENS = 512  # new tokens that tables of a fixed shape are for, or a multiple of these
_OTHER_SHAPE = "keys and values of another shape or dtype"


class KVCache:
    """Keys and values of `n_rows` sequences; `lengths[row]` tokens of each are valid."""

    def __init__(
        self,
        config: ModelConfig,
        n_rows: int,
        *,
        dtype: torch.dtype,
        kv_dtype: torch.dtype,
        device: torch.device,
        is_stacked: bool = True,
    ) -> None:
        """`kv_dtype` is the one that keys and values are kept in, `dtype` the one that they are computed in.

        is_stacked: for PyTorch's operations, by `layers` and `whole`; else for kernels, by `addresses`: then growing
                    copies nothing
        """
        layouts = block_layouts(config, kv_dtype, dtype)
        self._kv = layouts[0].kv  # they differ in sizes alone
        self._is_stacked = is_stacked
        self.n_rows = n_rows
        n_bytes = n_rows * sum(layout.n_bytes + layout.row_bytes for layout in layouts)
        if device.type == "cpu" and n_bytes >= LARGE_BYTES:
            check_fits(n_bytes, self._tokens_in_rows(KEY_BLOCK), SMALLER)
        self.groups = [BlockTables(layout, n_rows, device, is_stacked=is_stacked) for layout in layouts]
        """The tables of each group of layers."""
        self._windowed = [group for group in self.groups if group.layout.group.window is not None]
        self.lengths = [0] * n_rows
        self.capacity = 0
        """Positions that the tables reach to, a whole number of blocks: those of the longest row, or all reserved."""
        self.version = 0
        """A number that is another one whenever a table has changed, or blocks have moved."""
        self._open: set[int] = set()  # rows that are being written, or were when something came between

    @property
    def most_tokens(self) -> int:
        """Maximum number of tokens written to a row in one call."""
        return self._kv.most_tokens

    @property
    def forgets(self) -> bool:
        """Whether a row that grows loses what a prefix of it needs: some layer has a window."""
        return bool(self._windowed)

    @property
    def n_bytes(self) -> int:
        """Bytes of memory that the cache has used: of all blocks that were ever taken, and of what rows have beside."""
        return sum(group.n_bytes for group in self.groups)

    def bytes_read(self, n_tokens: int) -> int:
        """Bytes of a row of `n_tokens` that a step reads, over all layers."""
        return sum(group.layout.kv.bytes_read(n_tokens) for group in self.groups)

    def _tokens_in_rows(self, n_tokens: int) -> str:
        return f"Keys and values of {n_tokens:,} tokens in {self.n_rows:,} rows"

    @torch.inference_mode()
    def reserve(self, n_tokens: int, n_new: int) -> None:
        """Have memory for `n_tokens` in every row, so that nothing moves until a row grows beyond.

        n_new: tokens that are written to a row at a time

        Raises OutOfMemoryError if a CPU's memory has no room for them.
        """
        missing = []
        for group in self.groups:
            n_most = group.layout.group.most_kept_blocks(n_tokens, min(n_new, self.most_tokens))
            held = (len(table) - first for table, first in zip(group.rows, group.firsts, strict=True))
            missing.append(sum(max(0, n_most - n) for n in held))
        self._reserve(missing, n_tokens, with_spare=False)
        self._reach(-(-n_tokens // KEY_BLOCK))
        if self._is_stacked:
            self.whole()  # the tables, too, are to stay where they are

    def _reserve(self, n_blocks: Sequence[int], n_tokens: int, *, with_spare: bool) -> None:
        """Have so many free blocks of each group, for rows of up to `n_tokens`."""
        what = self._tokens_in_rows(n_tokens)
        missing = [group.pool.missing_bytes(n) for group, n in zip(self.groups, n_blocks, strict=True)]
        all_bytes = sum(missing)
        for group, n, own_bytes in zip(self.groups, n_blocks, missing, strict=True):
            if group.pool.reserve(n, what, with_spare=with_spare, other_bytes=all_bytes - own_bytes):
                group.forget_whole()
                self.version += 1

    def _reach(self, n_blocks: int) -> None:
        """Let the tables be as wide as so many blocks."""
        if n_blocks * KEY_BLOCK > self.capacity:
            self.capacity = n_blocks * KEY_BLOCK
            for group in self.groups:
                group.forget_whole()

    @torch.inference_mode()
    def begin(self, rows: slice, n_new: Sequence[int]) -> None:
        """Make room for so many more tokens in each of the rows, which are being written until `advance` counts them.

        Raises OutOfMemoryError if a CPU's memory has no room for them.
        """
        numbers = range(*rows.indices(self.n_rows))
        self._open.update(numbers)
        lengths = [self.lengths[row] for row in numbers]
        ends = [length + n for length, n in zip(lengths, n_new, strict=True)]
        n_blocks = [-(-end // KEY_BLOCK) for end in ends]
        places = list(zip(numbers, lengths, n_blocks, strict=True))
        n_missing = [sum(group.n_missing(*place) for place in places) for group in self.groups]
        if not any(n_missing):
            return
        self._reserve(n_missing, max(ends), with_spare=True)
        for group in self.groups:
            for place in places:
                group.extend(*place)
        self._reach(max(n_blocks))
        self.version += 1

    def advance(self, rows: slice, n_tokens: int) -> None:
        """Count `n_tokens` just written to each of the rows as valid."""
        self.lengths[rows] = [length + n_tokens for length in self.lengths[rows]]
        numbers = range(*rows.indices(self.n_rows))
        self._open.difference_update(numbers)
        for group in self._windowed:
            for row in numbers:
                self.version += group.give_back_unseen(row, self.lengths[row])

    def rollback(self, row: int, length: int) -> None:
        """Keep the first `length` tokens of a row: a `reusable_length`, or up to MOST_ROLLBACK fewer.

        In floating point and without windows, any number of them.
        """
        assert 0 <= length <= self.lengths[row]
        self.lengths[row] = length
        for group in self.groups:
            self.version += group.truncate(row, length)

    @torch.inference_mode()
    def wipe(self, row: int) -> None:
        """Empty a row, and forget what was computed in it."""
        self.rollback(row, 0)
        for recent in (recent for group in self.groups for recent in group.recent):
            recent[row].zero_()
        self._open.discard(row)

    @torch.inference_mode()
    def share(self, source: int, target: int, n_tokens: int) -> None:
        """Let a row begin with the first `n_tokens` of another, a `reusable_length`, by sharing its blocks."""
        assert source != target
        assert n_tokens <= self.lengths[source]
        for group in self.groups:
            group.share(source, target, n_tokens)
        self.lengths[target] = n_tokens
        self._open.discard(target)
        self.version += 1

    @torch.inference_mode()
    def swap(self, row: int, other: int) -> None:
        """Exchange two rows."""
        for group in self.groups:
            group.swap(row, other)
        self.lengths[row], self.lengths[other] = self.lengths[other], self.lengths[row]
        opened = {row: other, other: row}
        self._open = {opened.get(each, each) for each in self._open}
        self.version += 1

    def truncated(self, n_tokens: int) -> int:
        """`n_tokens` rounded down to a prefix whose keys and values do not depend on later tokens."""
        return n_tokens // self._kv.granularity * self._kv.granularity

    def reusable_length(self, row: int, n_tokens: int) -> int:
        """How many of the first `n_tokens` of a row another text can reuse as its prefix.

        None of them, where a layer has given back what a query after them would see: a shorter prefix needs older keys.
        """
        is_end = n_tokens == self.lengths[row] and row not in self._open
        length = n_tokens if is_end else self.truncated(n_tokens)
        return length if all(group.keeps(row, length) for group in self._windowed) else 0

    def layers(self, rows: slice, starts: Sequence[int], n_new: int, *, is_fixed: bool = False) -> list[LayerCache]:
        """Every layer for some rows, in each of which `n_new` queries follow the first `starts` tokens.

        is_fixed: tables of the same shape in each call until the capacity grows, for up to as many new tokens
        """
        n_fixed = -(-n_new // _FIXED_TOKENS) * _FIXED_TOKENS
        of_groups = []
        for group in self.groups:
            n_blocks = group.layout.group.most_seen_blocks(self.capacity, n_fixed) if is_fixed else None
            of_groups.append(group.layers(rows, starts, n_new, n_blocks))
        return self._in_order(of_groups)

    def whole(self) -> list[LayerCache]:
        """Every layer for all rows and one query after each: the same tensors each time, until the capacity grows."""
        return self._in_order([group.whole(self.lengths, self.capacity, self.version) for group in self.groups])

    def _in_order(self, of_groups: Sequence[Sequence[LayerCache]]) -> list[LayerCache]:
        """The layers of all groups in the order of their numbers."""
        numbered: dict[int, LayerCache] = {}
        for group, layers in zip(self.groups, of_groups, strict=True):
            numbered.update(zip(group.layout.group.layers, layers, strict=True))
        return [numbered[layer] for layer in range(len(numbered))]

    def tensors(self) -> Iterator[Tensor]:
        """Every tensor that a step reads: of keys and values, and the tables of `whole` once they were asked for."""
        for group in self.groups:
            yield from group.pool.memory
            for layer in group.pool.stacked:
                yield from layer.values()
            yield from group.recent
            yield from group.whole_tensors()

    def save(self, row: int, n_tokens: int) -> dict[str, Tensor]:
        """The first `n_tokens` of a row, a `truncated` number of them, by `keys.N`, `values.N` ... of layer N.

        Each is [kv_heads, slots, *shape]. Of a layer with a window, those of the blocks that the row still has; it must
        have all that a query after them sees.
        """
        assert n_tokens == self.truncated(n_tokens)
        assert all(group.keeps(row, n_tokens) for group in self.groups)
        n_blocks = -(-n_tokens // KEY_BLOCK)
        firsts = [min(group.firsts[row], n_blocks) for group in self.groups]
        outline = self._outline(n_tokens, firsts)
        saved = {name: torch.empty(shape, dtype=dtype) for name, (dtype, shape) in outline.items()}
        for group, first in zip(self.groups, firsts, strict=True):
            blocks = [group.pool.layers(block) for block in group.rows[row][first:n_blocks]]
            for name, part, index, layer in _parts_of(group):
                if blocks:
                    slots = torch.cat([block[index][name] for block in blocks], dim=1)
                    saved[f"{name}.{layer}"] = slots[:, : part.slots(n_tokens - first * KEY_BLOCK)]
        return saved

    @torch.inference_mode()
    def restore(self, row: int, n_tokens: int, saved: Mapping[str, Tensor]) -> None:
        """Fill a row with what `save` gave; raises ValueError if it does not fit this cache."""
        if n_tokens != self.truncated(n_tokens):
            raise ValueError("a part of a block of keys")
        firsts = [_first_saved(group, n_tokens, saved) for group in self.groups]
        outline = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in saved.items()}
        if outline != self._outline(n_tokens, firsts):
            raise ValueError(_OTHER_SHAPE)
        self.rollback(row, 0)
        for group, first in zip(self.groups, firsts, strict=True):
            group.skip(row, first)
        self.begin(slice(row, row + 1), [n_tokens])
        for group, first in zip(self.groups, firsts, strict=True):
            blocks = [group.pool.layers(block) for block in group.rows[row][first:]]
            for name, part, index, layer in _parts_of(group):
                pieces = torch.split(saved[f"{name}.{layer}"], part.slots(KEY_BLOCK), dim=1)
                for block, piece in zip(blocks, pieces, strict=True):
                    block[index][name][:, : piece.shape[1]] = piece
        self.advance(slice(row, row + 1), n_tokens)

    def _outline(self, n_tokens: int, firsts: Sequence[int]) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Dtypes and shapes of the tensors that `save` gives of `n_tokens`, from the first block of each group on."""
        return {
            f"{name}.{layer}": (
                part.dtype,
                (group.layout.group.n_kv_heads, part.slots(n_tokens - first * KEY_BLOCK), *part.shape),
            )
            for group, first in zip(self.groups, firsts, strict=True)
            for name, part, _, layer in _parts_of(group)
        }


def _parts_of(group: BlockTables) -> Iterator[tuple[str, KVTensor, int, int]]:
    """Name and kind of each part of the layers of a group, with the layer's number in the group and in the model."""
    for name, part in group.layout.kv.parts.items():
        for index, layer in enumerate(group.layout.group.layers):
            yield name, part, index, layer


def _first_saved(group: BlockTables, n_tokens: int, saved: Mapping[str, Tensor]) -> int:
    """The first block that `save` has kept of a group's layers; raises ValueError if it is none that it would keep."""
    name, part, _, layer = next(_parts_of(group))
    slots = saved.get(f"{name}.{layer}")
    n_blocks = 0 if slots is None or slots.ndim < 2 else -(-slots.shape[1] // part.slots(KEY_BLOCK))
    first = -(-n_tokens // KEY_BLOCK) - n_blocks
    if not 0 <= first <= group.layout.group.first_seen_block(n_tokens):
        raise ValueError(_OTHER_SHAPE)
    return first
