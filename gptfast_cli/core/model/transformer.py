"""The decoder, written once in the words of `kernels`: a family differs in its config, a device in its backend."""

import torch
from torch import Tensor

from gptfast_cli.core.config import ModelConfig
from gptfast_cli.core.kernels import AttentionSpec, Backend, LayerCache, Linear, Norm, Placement
from gptfast_cli.core.model.cache import KVCache
from gptfast_cli.core.model.rope import frequencies, rotation
from gptfast_cli.core.model.weights import LayerWeights, ModelWeights

ALL_ROWS = slice(None)


class Transformer:
    """A decoder of the Llama class over weights that stay as their schemes store them."""

    def __init__(self, config: ModelConfig, weights: ModelWeights, backend: Backend, dtype: torch.dtype) -> None:
        self.config = config
        self.weights = weights
        self.dtype = dtype
        self.device = next(iter(weights.embedding.parts.values())).device
        self._backend = backend
        self._attention = AttentionSpec(config.n_heads, config.n_kv_heads, config.head_dim)
        self._frequencies = frequencies(config.head_dim, config.rope).to(self.device)

    @torch.inference_mode()
    def forward(self, tokens: Tensor, cache: KVCache, *, rows: slice = ALL_ROWS) -> Tensor:
        """Run tokens [batch, time] int64 through all layers, each row going on where its cache ends.

        The tokens are added to the cache. `rows` are the cache rows that the batch stands for.
        Returns [batch, time, dim], to be turned into logits where they are wanted.
        """
        starts = cache.lengths[rows]
        n_keys = max(starts) + tokens.shape[1]
        cache.reserve(n_keys)
        place = self._placement(starts, tokens.shape[1])
        x = self._backend.embed(tokens, self.weights.embedding, self.dtype)
        for index, layer in enumerate(self.weights.layers):
            x = self._layer(x, layer, place=place, cache=cache.layer(index, rows=rows, n_keys=n_keys))
        cache.advance(rows, tokens.shape[1])
        return x

    @torch.inference_mode()
    def logits(self, x: Tensor) -> Tensor:
        """Logits of x [..., dim] as `forward` returned it: [..., vocab_size] float32."""
        norm = Norm(self.weights.norm, self.config.norm_eps)
        return self._backend.head(x, Linear(self.weights.head), norm=norm)

    def new_cache(self, n_rows: int) -> KVCache:
        """An empty cache for `n_rows` sequences of this model."""
        return KVCache(self.config, n_rows, dtype=self.dtype, device=self.device)

    def _layer(self, x: Tensor, layer: LayerWeights, *, place: Placement, cache: LayerCache) -> Tensor:
        backend, spec, eps = self._backend, self._attention, self.config.norm_eps
        norm = Norm(layer.attention_norm, eps)
        q = backend.project_qkv(x, layer.qkv, norm=norm, place=place, cache=cache, spec=spec)
        heads = backend.attend(q, cache, place=place, spec=spec)
        x = backend.project_output(heads, layer.attention_output, residual=x)
        hidden = backend.gate_up(x, layer.gate_up, norm=Norm(layer.ffn_norm, eps))
        return backend.down(hidden, layer.down, residual=x)

    def _placement(self, starts: list[int], time: int) -> Placement:
        first = torch.tensor(starts, dtype=torch.int64, device=self.device).unsqueeze(-1)
        positions = first + torch.arange(time, device=self.device)
        return Placement(positions, *rotation(positions, self._frequencies))
