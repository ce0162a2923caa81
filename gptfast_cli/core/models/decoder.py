"""The decoder protocol, and logits that may be sharded over ranks.

For argmax and top-k each rank sends its own candidates only; all logits are gathered only if all of them matter.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import torch
import torch.nn.functional as F  # noqa: N812  (the name that everyone knows)
from torch import Tensor

from gptfast_cli.core.backends.base import LayerCache
from gptfast_cli.core.backends.cpu.engine import StepsAhead
from gptfast_cli.core.backends.cpu.library import SamplingParams
from gptfast_cli.core.backends.cpu.rounds import EngineHandle
from gptfast_cli.core.config import ModelConfig
from gptfast_cli.core.errors import GptFastError
from gptfast_cli.core.models.kv_cache import KVCache
from gptfast_cli.core.models.process_group import ALONE, ProcessGroup
from gptfast_cli.core.models.sharding import ModelShard


class NonFiniteLogitsError(GptFastError):
    """Logits with NaN or infinity, from which no token can be sampled; `where` ends the message's first sentence."""

    def __init__(self, dtype: torch.dtype, where: str) -> None:
        super().__init__(
            f"The model's logits are NaN or infinite {where}.",
            "float16 ends at 65,504: add --dtype bfloat16 or --dtype float32."
            if dtype is torch.float16
            else "Its weights may be damaged: --verify-weights compares them with their hashes.",
        )


@dataclass(frozen=True)
class Logits:
    """Next-token logits, sharded by token; every rank must call the same methods in the same order.

    own:   [rows, own tokens] float32, of this rank's tokens
    shard: the shard of the model; None for the whole vocabulary
    """

    own: Tensor
    shard: ModelShard | None = None
    group: ProcessGroup = ALONE

    @property
    def vocab_size(self) -> int:
        """Tokens of all ranks."""
        return self.own.shape[-1] if self.shard is None else self.shard.whole.vocab_size

    @property
    def tokens(self) -> slice:
        """Tokens of this rank."""
        return slice(0, self.vocab_size) if self.shard is None else self.shard.tokens

    @cached_property
    def whole(self) -> Tensor:
        """Logits of the whole vocabulary, [rows, vocab_size] float32: an all-gather."""
        if self.group.size == 1:
            return self.own
        return self.group.gather(self._padded())[..., : self.vocab_size]

    def put_together(self) -> "Logits":
        """The same logits, whole on every rank."""
        return Logits(self.whole)

    def rows(self, rows: slice | Sequence[int]) -> "Logits":
        """Some rows."""
        return replace(self, own=self.own[rows])

    def split(self, lengths: list[int]) -> list["Logits"]:
        """So many rows at a time."""
        return [replace(self, own=part) for part in torch.split(self.own, lengths)]

    def best(self) -> Tensor:
        """Argmax of each row, the lowest id among equals, [rows] int64.

        `vocab_size` if a logit is NaN or positive infinity, or all are negative infinity.
        """
        if self.group.size == 1:
            values, tokens = self.own.max(dim=-1)
        else:
            own, at = self._padded().max(dim=-1, keepdim=True)
            gathered, gathered_tokens = self._exchanged(own, at)
            values, rank = gathered.max(dim=-1, keepdim=True)  # the first of equals: the lowest token
            values, tokens = values.squeeze(-1), gathered_tokens.gather(-1, rank).squeeze(-1)
        return torch.where(values.isfinite(), tokens, self.vocab_size)

    def largest(self, n: int) -> tuple[Tensor, Tensor] | None:
        """Candidates for top-n: the n largest of each row, all equal to the n-th, and some smaller ones.

        Returns logits [rows, candidates] float32 and their tokens int64, in the order of tokens. None if that would be
        all of them, or if a rank may have more logits equal to the n-th than it has sent.
        """
        if self.shard is None or self.group.size == 1 or n >= self.shard.n_tokens:
            return None
        own, at = self._padded().topk(n + 1)  # one more: where it is as large, others may be too
        at, order = at.sort()
        values, tokens = self._exchanged(own.gather(-1, order), at)
        least_taken = values.topk(n).values[:, -1:]
        least_gathered = values.view(-1, self.group.size, n + 1).amin(dim=-1)
        return None if (least_gathered >= least_taken).any() else (values, tokens)

    def _exchanged(self, values: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
        """All-gather of values [rows, n] and their token indices `at`: both [rows, size * n], by rank."""
        tokens = at + self.tokens.start
        gathered = self.group.gather(torch.cat([values, tokens.float()], dim=-1))  # exact up to 16 million
        gathered = gathered.view(len(values), self.group.size, 2, -1)
        return gathered[:, :, 0].flatten(1), gathered[:, :, 1].flatten(1).long()

    def _padded(self) -> Tensor:
        """Own logits, padded to the same number on every rank."""
        assert self.shard is not None
        return F.pad(self.own, (0, self.shard.n_tokens - self.own.shape[-1]), value=-torch.inf)


class TokenLoop(Protocol):
    """Sampling inside the model: decode steps, or rounds of speculation, in one native call."""

    def run_ahead(
        self,
        tokens: Sequence[Sequence[int]],
        cache: KVCache,
        params: Sequence[SamplingParams],
        uniforms: Sequence[Sequence[float]],
        stops: Sequence[int],
        *,
        keep_logits: bool = False,
    ) -> StepsAhead:
        """Feed tokens to the first rows of a cache, then decode sampled tokens; see `NativeEngine.run_ahead`.

        Keys and values are written, but not yet counted.
        """
        ...

    def handle(self, cache: KVCache, n_rows: int, n_tokens: int) -> EngineHandle:
        """Handle of the engine and this cache, with room for `n_tokens` in each of the first rows, for `run_rounds`."""
        ...


class Decoder(Protocol):
    """A model in memory."""

    backend: str
    """The name of the backend that runs it."""

    @property
    def compilable(self) -> "CompilableDecoder | None":
        """The same model, if its steps consist of PyTorch's operations; else None."""
        ...

    @property
    def token_loop(self) -> TokenLoop | None:
        """Native sampling; None if every step returns logits to Python."""
        ...

    config: ModelConfig
    dtype: torch.dtype
    """The compute dtype."""
    kv_dtype: torch.dtype
    """The KV-cache dtype: the same, or int8."""
    device: torch.device
    has_own_threads: bool
    """Whether a step runs on spinning threads of its own, which compete with PyTorch's."""
    group: ProcessGroup
    """Tensor-parallel ranks; logits are those of a rank's own tokens, see Logits."""
    shard: ModelShard
    """The shard of this rank."""

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights as stored; a tied head counts once."""
        ...

    @property
    def embedding_bytes(self) -> int:
        """Of these, the embedding's."""
        ...

    def new_cache(self, n_rows: int) -> KVCache:
        """An empty cache for `n_rows` sequences of this model."""
        ...

    def step(self, tokens: Sequence[Sequence[int]], cache: KVCache, rows: slice) -> Tensor:
        """Append tokens [batch, time] to rows of a cache.

        Keys and values are written, but not yet counted. Returns next-token logits, [batch, own tokens] float32.
        """
        ...

    def feed(
        self, tokens: Sequence[Tensor], cache: KVCache, rows: slice, wanted: Sequence[int] | None = None
    ) -> Tensor:
        """The same for rows of any length, each int64 on the model's device (just sampled tokens need no transfer).

        Returns the logits after all tokens, row after row, or after those with the indices `wanted` in that order:
        [wanted, own tokens] float32.
        """
        ...

    def logsumexp_argmax(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Logsumexp [rows] and argmax [rows] int64 of logits [rows, vocab_size].

        Logsumexp is not finite if a logit is NaN; argmax is the lowest id among equals.
        """
        ...


class CompilableDecoder(Decoder, Protocol):
    """A decoder with a step of tensors alone, which torch.compile can trace."""

    def inputs(self, tokens: Sequence[Sequence[int]], cache: KVCache, rows: slice) -> tuple[Tensor, Tensor]:
        """Tokens and positions of a step as tensors, each [batch, time] int64."""
        ...

    def next_logits(self, tokens: Tensor, positions: Tensor, layers: Sequence[LayerCache]) -> Tensor:
        """Logits after tokens [batch, time] at their positions: [batch, own tokens] float32.

        It writes keys and values, which are not counted.
        """
        ...

    def tensors(self) -> Iterator[Tensor]:
        """Every tensor that a step reads, but for its tokens, their positions and the cache."""
        ...
