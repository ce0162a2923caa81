"""One step of decoding over a batch: the only place where tokens meet the model and its cache."""

from collections.abc import Sequence

import torch
from torch import Tensor

from gptfast_cli.core.model.transformer import Transformer


class Runner:
    """A model and the KV cache of the sequences that it is decoding, one row each."""

    def __init__(self, model: Transformer, n_rows: int) -> None:
        self.model = model
        self._cache = model.new_cache(n_rows)

    def prefill(self, row: int, tokens: Sequence[int]) -> Tensor:
        """Feed a piece of a prompt to one row; return the logits of the token to come, [vocab] float32."""
        batch = torch.tensor([tokens], dtype=torch.int64, device=self.model.device)
        x = self.model.forward(batch, self._cache, rows=slice(row, row + 1))
        return self.model.logits(x[0, -1])

    def step(self, tokens: Sequence[int]) -> Tensor:
        """Feed one token to each row; return the logits of the tokens to come, [rows, vocab] float32."""
        batch = torch.tensor(tokens, dtype=torch.int64, device=self.model.device).unsqueeze(-1)
        return self.model.logits(self.model.forward(batch, self._cache)[:, -1])

    def select(self, rows: Sequence[int]) -> None:
        """Go on with these rows, in this order; a row may be named twice."""
        self._cache.select(rows)

    @property
    def step_bytes(self) -> int:
        """Bytes that the next step reads: all weights, but only rows of the embedding, and the KV cache in use."""
        weights, config = self.model.weights, self.model.config
        table = 0 if config.tied_embeddings else weights.embedding.n_bytes  # a tied table is read whole, as the head
        rows = len(self._cache.lengths) * weights.embedding.n_bytes // config.vocab_size
        kv = config.kv_bytes_per_token(self.model.dtype.itemsize) * sum(self._cache.lengths)
        return weights.n_bytes - table + rows + kv
