"""Texts on their way through a model, one block at a time: only that block's weights have to be in memory.

What stays is the hidden state of each token, [tokens, dim]. So the numbers of a model larger than the memory can be
had, and those of a model that is only being made.

They are one tensor that each operation writes over. Many small ones that are made anew each time would come to lie
among what an operation needs for a moment, and the allocator could not give that back: as much again, or more.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from gptfast_cli.core.backends.base import KEY_BLOCK, Backend, LayerCache, Linear, Norm, RopePositions
from gptfast_cli.core.backends.layer_cache import FloatCache
from gptfast_cli.core.config import ModelConfig
from gptfast_cli.core.models.rope import LayerRotations
from gptfast_cli.core.models.transformer import decoder_layers, scaled_embedding, shaped_logits
from gptfast_cli.core.models.weights import LayerWeights
from gptfast_cli.core.schemes import Weight


@dataclass(slots=True)
class _Batch:
    """Texts of similar length."""

    texts: Sequence[int]  # which they are, in the order of the stream
    lengths: Sequence[int]
    tokens: Tensor  # [batch, time] int64, filled up with 0
    x: Tensor  # [batch, time, dim], a view of the states


class Operation(Protocol):
    """A layer or a part of one: maps x [batch, time, dim] to x, from an empty KV cache."""

    def __call__(self, x: Tensor, *, place: RopePositions, cache: LayerCache) -> Tensor:
        """The output."""
        ...


class Stream:
    """Hidden states of texts: call `embed`, `layer` for each layer, then `logits`."""

    def __init__(
        self,
        config: ModelConfig,
        texts: Sequence[Sequence[int]],
        *,
        backend: Backend,
        device: torch.device,
        filled_up: bool = True,
    ) -> None:
        """`filled_up`: batch texts of different lengths, padding the shorter ones."""
        self._config = config
        self._backend = backend
        self._rotations = LayerRotations(config.layers, device)
        self._device = device
        self.layers = decoder_layers(config, backend)
        self._batches = [self._batch(texts, numbers) for numbers in _alike(texts, filled_up=filled_up)]

    @torch.inference_mode()
    def embed(self, embedding: Weight, dtype: torch.dtype) -> None:
        """Embed all tokens, in the compute dtype."""
        for batch, x in zip(self._batches, self.room(self._config.dim, dtype), strict=True):
            batch.x = x.copy_(scaled_embedding(self._backend.embed(batch.tokens, embedding, dtype), self._config))

    def layer(self, number: int, weights: LayerWeights) -> None:
        """Compute a layer."""
        self.run(number, partial(self.layers[number], layer=weights))

    @torch.inference_mode()
    def run(self, number: int, operation: Operation) -> None:
        """Replace the states of each batch by the output of an operation of layer `number`."""
        attention = self._config.layers[number].attention
        for batch in self._batches:
            n_rows, time = batch.tokens.shape
            at = torch.arange(time, device=self._device).expand(n_rows, time)
            place = self._rotations.at(at)[number]
            table = torch.arange(n_rows * -(-time // KEY_BLOCK), device=self._device).view(n_rows, -1)
            shape = (table.numel(), attention.n_kv_heads, KEY_BLOCK, attention.head_dim)
            cache = FloatCache(batch.x.new_zeros(shape), batch.x.new_zeros(shape), table)
            batch.x.copy_(operation(batch.x, place=place, cache=cache))

    def room(self, width: int, dtype: torch.dtype) -> list[Tensor]:
        """Views [batch, time, width] for each batch, into one allocated tensor."""
        shapes = [batch.tokens.shape for batch in self._batches]
        whole = torch.empty(sum(shape.numel() for shape in shapes), width, dtype=dtype, device=self._device)
        rows = torch.split(whole, [shape.numel() for shape in shapes])
        return [part.view(*shape, width) for part, shape in zip(rows, shapes, strict=True)]

    def copy(self) -> "Stream":
        """An independent copy of the current states."""
        other = copy.copy(self)
        states = self.room(self._config.dim, self._batches[0].x.dtype)
        pairs = zip(self._batches, states, strict=True)
        other._batches = [replace(batch, x=x.copy_(batch.x)) for batch, x in pairs]  # noqa: SLF001  # of its own class
        return other

    def end(self) -> None:
        """Free the states."""
        for batch in self._batches:
            batch.x = batch.x.new_empty(0)

    def hidden(self) -> Tensor:
        """The current states, text after text, [tokens, dim]."""
        rows = {
            text: batch.x[row, :length]
            for batch in self._batches
            for row, (text, length) in enumerate(zip(batch.texts, batch.lengths, strict=True))
        }
        return torch.cat([rows[text] for text in sorted(rows)])

    def logits(
        self, norm: Weight, head: Weight, *, block_tokens: int, slice_elements: int = 1 << 24
    ) -> Iterator[Tensor]:
        """Logits after each token, in order, in blocks [<= block_tokens, vocab_size] float32.

        slice_elements: of the head per product, which may have to be dequantized: 64 MB in float32
        """
        logits = partial(self._logits, norm=norm, head=head, slice_elements=slice_elements)
        # no generator, which would keep what it has given while it makes the next
        return map(logits, torch.split(self.hidden(), block_tokens))

    @torch.inference_mode()
    def _logits(self, x: Tensor, *, norm: Weight, head: Weight, slice_elements: int) -> Tensor:
        logits = torch.empty(len(x), self._config.vocab_size, device=self._device)
        last_norm = Norm(norm, self._config.norm_eps, self._config.norm_offset)
        n_rows = max(1, slice_elements // self._config.dim)
        for first in range(0, self._config.vocab_size, n_rows):
            rows = slice(first, first + n_rows)
            part = Linear(head.row_block(rows))
            logits[:, rows] = self._backend.head(x, part, norm=last_norm)
        return shaped_logits(logits, self._config)

    def _batch(self, texts: Sequence[Sequence[int]], numbers: Sequence[int]) -> _Batch:
        lengths = [len(texts[number]) for number in numbers]
        tokens = torch.zeros(len(numbers), max(lengths), dtype=torch.int64)
        for row, number in enumerate(numbers):
            tokens[row, : lengths[row]] = torch.tensor(texts[number])
        return _Batch(numbers, lengths, tokens.to(self._device), torch.empty(0, device=self._device))


def _alike(texts: Sequence[Sequence[int]], *, filled_up: bool, batch_tokens: int = 1024) -> Iterator[list[int]]:
    """Batches of texts of similar length (little padding), or of equal length.

    batch_tokens: per pass through a layer: enough to be compute bound, few enough to bound memory
    """
    batch: list[int] = []
    for number in sorted(range(len(texts)), key=lambda number: len(texts[number])):
        assert texts[number]
        is_full = len(texts[number]) * (len(batch) + 1) > batch_tokens
        if batch and (is_full or (len(texts[number]) > len(texts[batch[0]]) and not filled_up)):
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch
