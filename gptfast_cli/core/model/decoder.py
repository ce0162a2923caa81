"""What decoding needs of a model, whoever computes it: PyTorch's operations or a native engine."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from gptfast_cli.core.config import ModelConfig
from gptfast_cli.core.model.cache import KVCache
from gptfast_cli.core.model.collective import Collective
from gptfast_cli.core.model.share import Share


class Decoder(Protocol):
    """A model in memory."""

    config: ModelConfig
    dtype: torch.dtype
    """In which it computes."""
    kv_dtype: torch.dtype
    """In which it keeps keys and values: the same, or int8."""
    device: torch.device
    has_own_threads: bool
    """Whether a step is done by threads that stand ready for the next one: PyTorch's would be in their way."""
    together: Collective
    """The ranks that each have a part of it; logits are those of a rank's own tokens, see Logits."""
    share: Share
    """That part."""

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
        """Feed tokens [batch, time] to rows of a cache, each going on where its row ends; room has been made.

        They are written, but not yet counted. Returns the logits of the tokens to come, [batch, own tokens] float32.
        """
        ...

    def feed(
        self, tokens: Sequence[Tensor], cache: KVCache, rows: slice, wanted: Sequence[int] | None = None
    ) -> Tensor:
        """The same for rows of any length, each int64 on the model's device, so that what it has just drawn can be fed.

        There is room for the longest of them in every row. Returns the logits after every token, row after row, or
        after the wanted ones, which are counted so: [wanted, own tokens] float32.
        """
        ...

    def outlook(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """What rows of logits [rows, vocab_size] say of the token to come.

        Returns the logarithm of the sum of exponentials of each, [rows], which is not finite where a logit is no
        number, and the likeliest token, the lowest id among equals, [rows] int64.
        """
        ...
