"""The KV cache of all layers, in blocks of KEY_BLOCK tokens (kv_blocks).

Each row has a table of blocks (PagedAttention, Kwon et al. 2023, arXiv:2309.06180). A row takes a block when it needs
one; rows that begin alike share blocks, and a row that writes into a shared block gets a copy of it first. Rows stand
at different positions, and to roll a row back is to shorten its length.
"""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from gptfast_cli.core.backends.base import KEY_BLOCK, LayerCache
from gptfast_cli.core.config import ModelConfig
from gptfast_cli.core.device import check_fits, to_device
from gptfast_cli.core.models.kv_blocks import LARGE_BYTES, SMALLER, BlockPool, block_layout, kv_layout_of


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
        self._layout = kv_layout_of(config, kv_dtype, dtype)
        self.block_layout = block_layout(config, self._layout)
        self._pool = BlockPool(self.block_layout, device, is_stacked=is_stacked)
        self._device = device
        self.n_rows = n_rows
        self._check_rows_fit()
        self.lengths = [0] * n_rows
        self.capacity = 0
        """Positions that the tables reach to, a whole number of blocks: those of the longest row, or all reserved."""
        self.version = 0
        """A number that is another one whenever a table has changed, or blocks have moved."""
        self.recent: list[Tensor] = []
        """Of each layer what rows have beside their blocks, [rows, kv_heads, 2 KEY_BLOCK, head_dim]; mostly nothing."""
        if (recent := self._layout.recent) is not None:
            shape = (n_rows, self.block_layout.n_kv_heads, 2 * KEY_BLOCK, *recent.shape)
            self.recent = [torch.zeros(shape, dtype=recent.dtype, device=device) for _ in range(config.n_layers)]
        self._tables: list[list[int]] = [[] for _ in range(n_rows)]
        self._open: set[int] = set()  # rows that are being written, or were when something came between
        self._whole: tuple[int, Tensor] | None = None  # the table of all rows, and its version

    @property
    def most_tokens(self) -> int:
        """Maximum number of tokens written to a row in one call."""
        return self._layout.most_tokens

    @property
    def n_bytes(self) -> int:
        """Bytes of memory that the cache has used: of all blocks that were ever taken, and of what rows have beside."""
        return self._pool.n_used * self.block_layout.n_bytes + sum(tensor.nbytes for tensor in self.recent)

    def bytes_read(self, n_tokens: int) -> int:
        """Bytes of a row of `n_tokens` that a step reads, over all layers."""
        return self._layout.bytes_read(n_tokens)

    def _check_rows_fit(self) -> None:
        """Raise OutOfMemoryError if the rows have no room for a block each."""
        n_bytes = self.n_rows * (self.block_layout.n_bytes + self.block_layout.row_bytes)
        if self._device.type == "cpu" and n_bytes >= LARGE_BYTES:
            check_fits(n_bytes, self._tokens_in_rows(KEY_BLOCK), SMALLER)

    def _tokens_in_rows(self, n_tokens: int) -> str:
        return f"Keys and values of {n_tokens:,} tokens in {self.n_rows:,} rows"

    @torch.inference_mode()
    def reserve(self, n_tokens: int) -> None:
        """Have memory for `n_tokens` in every row, so that nothing moves until a row grows beyond.

        Raises OutOfMemoryError if a CPU's memory has no room for them.
        """
        n_blocks = -(-n_tokens // KEY_BLOCK)
        missing = sum(max(0, n_blocks - len(table)) for table in self._tables)
        self._reserve(missing, n_tokens, spare=False)
        self._reach(n_blocks)
        self._whole_table()

    def _reserve(self, n_blocks: int, n_tokens: int, *, spare: bool) -> None:
        """Have so many free blocks, for rows of up to `n_tokens`."""
        if self._pool.reserve(n_blocks, self._tokens_in_rows(n_tokens), with_spare=spare):
            self._whole = None
            self.version += 1

    def _reach(self, n_blocks: int) -> None:
        """Let the tables be as wide as so many blocks."""
        if n_blocks * KEY_BLOCK > self.capacity:
            self.capacity = n_blocks * KEY_BLOCK
            self._whole = None

    @torch.inference_mode()
    def begin(self, rows: slice, n_new: Sequence[int]) -> None:
        """Make room for so many more tokens in each of the rows, which are being written until `advance` counts them.

        Raises OutOfMemoryError if a CPU's memory has no room for them.
        """
        numbers = range(*rows.indices(self.n_rows))
        self._open.update(numbers)
        ends = [self.lengths[row] + n for row, n in zip(numbers, n_new, strict=True)]
        n_blocks = [-(-end // KEY_BLOCK) for end in ends]
        n_missing = sum(max(0, n - len(self._tables[row])) for row, n in zip(numbers, n_blocks, strict=True))
        n_missing += sum(map(self._writes_shared, numbers))
        if not n_missing:
            return
        self._reserve(n_missing, max(ends), spare=True)
        for row, n in zip(numbers, n_blocks, strict=True):
            if self._writes_shared(row):
                self._own_last_block(row)
            table = self._tables[row]
            table += [self._pool.take() for _ in range(n - len(table))]
        self._reach(max(n_blocks))
        self.version += 1

    def _writes_shared(self, row: int) -> bool:
        """Whether the next token of a row belongs into a block that other rows have, too."""
        table, last = self._tables[row], self.lengths[row] // KEY_BLOCK
        return last < len(table) and self._pool.is_shared(table[last])

    def _own_last_block(self, row: int) -> None:
        """Give a row a copy of the block that its next token belongs into: of the tokens that it has there."""
        last, n_tokens = divmod(self.lengths[row], KEY_BLOCK)
        shared, own = self._tables[row][last], self._pool.take()
        for source, target in zip(self._pool.layers(shared), self._pool.layers(own), strict=True):
            for name, part in self._layout.parts.items():
                n_slots = part.slots(n_tokens)
                target[name][:, :n_slots] = source[name][:, :n_slots]
        self._tables[row][last] = own
        self._pool.give_back([shared])

    def advance(self, rows: slice, n_tokens: int) -> None:
        """Count `n_tokens` just written to each of the rows as valid."""
        self.lengths[rows] = [length + n_tokens for length in self.lengths[rows]]
        self._open.difference_update(range(*rows.indices(self.n_rows)))

    def rollback(self, row: int, length: int) -> None:
        """Keep the first `length` tokens of a row: a `reusable_length`, or up to `most_tokens` fewer."""
        assert 0 <= length <= self.lengths[row]
        self.lengths[row] = length
        table, n_blocks = self._tables[row], -(-length // KEY_BLOCK)
        if n_blocks < len(table):
            self._pool.give_back(table[n_blocks:])
            del table[n_blocks:]
            self.version += 1

    @torch.inference_mode()
    def wipe(self, row: int) -> None:
        """Empty a row, and forget what was computed in it."""
        self.rollback(row, 0)
        for recent in self.recent:
            recent[row].zero_()
        self._open.discard(row)

    @torch.inference_mode()
    def share(self, source: int, target: int, n_tokens: int) -> None:
        """Let a row begin with the first `n_tokens` of another, a `reusable_length`, by sharing its blocks."""
        assert source != target
        assert n_tokens <= self.lengths[source]
        shared = self._tables[source][: -(-n_tokens // KEY_BLOCK)]
        self._pool.share(shared)
        self._pool.give_back(self._tables[target])
        self._tables[target] = shared
        for recent in self.recent:
            recent[target] = recent[source]
        self.lengths[target] = n_tokens
        self._open.discard(target)
        self.version += 1

    @torch.inference_mode()
    def swap(self, row: int, other: int) -> None:
        """Exchange two rows."""
        self._tables[row], self._tables[other] = self._tables[other], self._tables[row]
        self.lengths[row], self.lengths[other] = self.lengths[other], self.lengths[row]
        for recent in self.recent:
            recent[[row, other]] = recent[[other, row]]
        opened = {row: other, other: row}
        self._open = {opened.get(each, each) for each in self._open}
        self.version += 1

    def truncated(self, n_tokens: int) -> int:
        """`n_tokens` rounded down to a prefix whose keys and values do not depend on later tokens."""
        return n_tokens // self._layout.granularity * self._layout.granularity

    def reusable_length(self, row: int, n_tokens: int) -> int:
        """How many of the first `n_tokens` of a row another text can reuse as its prefix."""
        is_end = n_tokens == self.lengths[row] and row not in self._open
        return n_tokens if is_end else self.truncated(n_tokens)

    def layers(self, *, rows: slice, n_keys: int) -> list[LayerCache]:
        """Every layer for some rows, whose tables reach to `n_keys` tokens at least."""
        n_blocks = -(-n_keys // KEY_BLOCK)
        return self._layers(self._table(rows, n_blocks), rows)

    def whole(self) -> list[LayerCache]:
        """Every layer for all rows: the same tensors each time, until the capacity grows."""
        return self._layers(self._whole_table(), slice(None))

    def _whole_table(self) -> Tensor:
        if self._whole is None or self._whole[0] != self.version:
            table = self._table(slice(None), self.capacity // KEY_BLOCK)
            if self._whole is not None:
                table = self._whole[1].copy_(table)
            self._whole = self.version, table
        return self._whole[1]

    def _table(self, rows: slice, n_blocks: int) -> Tensor:
        """The blocks of some rows, and after a row's end its last one once more, whose keys are masked."""
        tables = [(table or [0])[:n_blocks] for table in self._tables[rows]]
        filled = [block for table in tables for block in (*table, *table[-1:] * (n_blocks - len(table)))]
        return to_device(filled, torch.int64, self._device).view(len(tables), n_blocks)

    def _layers(self, table: Tensor, rows: slice) -> list[LayerCache]:
        layers = self._pool.stacked
        recents: Sequence[Tensor | None] = [recent[rows] for recent in self.recent] or [None] * len(layers)
        return [self._layout.layer(parts, recent, table) for parts, recent in zip(layers, recents, strict=True)]

    def addresses(self) -> list[int]:
        """The address of each block of each row, [rows, capacity / KEY_BLOCK]; 0 after the end of a row."""
        n_blocks = self.capacity // KEY_BLOCK
        address = [memory.data_ptr() for memory in self._pool.memory[: self._pool.n_used]]
        return [
            each
            for table in self._tables
            for each in (*(address[block] for block in table), *[0] * (n_blocks - len(table)))
        ]

    def tensors(self) -> Iterator[Tensor]:
        """Every tensor that a step reads: of keys and values, and the table of `whole` once it has been asked for."""
        yield from self._pool.memory
        for layer in self._pool.stacked:
            yield from layer.values()
        yield from self.recent
        if self._whole is not None:
            yield self._whole[1]

    def save(self, row: int, n_tokens: int) -> dict[str, Tensor]:
        """The first `n_tokens` of a row, a `truncated` number of them, by `keys.N`, `values.N` ... of layer N.

        Each is [kv_heads, slots, *shape].
        """
        assert n_tokens == self.truncated(n_tokens)
        blocks = [self._pool.layers(block) for block in self._tables[row][: -(-n_tokens // KEY_BLOCK)]]
        saved = {name: torch.empty(shape, dtype=dtype) for name, (dtype, shape) in self.outline(n_tokens).items()}
        for name, part in self._layout.parts.items():
            for layer in range(self.block_layout.n_layers if blocks else 0):
                slots = torch.cat([block[layer][name] for block in blocks], dim=1)
                saved[f"{name}.{layer}"] = slots[:, : part.slots(n_tokens)]
        return saved

    @torch.inference_mode()
    def restore(self, row: int, n_tokens: int, saved: Mapping[str, Tensor]) -> None:
        """Fill a row with what `save` gave; raises ValueError if it does not fit this cache."""
        if n_tokens != self.truncated(n_tokens):
            raise ValueError("a part of a block of keys")
        if {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in saved.items()} != self.outline(n_tokens):
            raise ValueError("keys and values of another shape or dtype")
        self.rollback(row, 0)
        self.begin(slice(row, row + 1), [n_tokens])
        blocks = [self._pool.layers(block) for block in self._tables[row]]
        for name, part in self._layout.parts.items():
            for layer in range(self.block_layout.n_layers):
                pieces = torch.split(saved[f"{name}.{layer}"], part.slots(KEY_BLOCK), dim=1)
                for block, piece in zip(blocks, pieces, strict=True):
                    block[layer][name][:, : piece.shape[1]] = piece
        self.advance(slice(row, row + 1), n_tokens)

    def outline(self, n_tokens: int) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Dtypes and shapes of the tensors that `save` gives of `n_tokens`."""
        n_kv_heads = self.block_layout.n_kv_heads
        return {
            f"{name}.{layer}": (part.dtype, (n_kv_heads, part.slots(n_tokens), *part.shape))
            for name, part in self._layout.parts.items()
            for layer in range(self.block_layout.n_layers)
        }
