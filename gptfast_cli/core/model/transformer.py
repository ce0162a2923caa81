"""The decoder, written once in the words of `kernels`: a family differs in its config, a device in its backend."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from gptfast_cli.core.config import ModelConfig
from gptfast_cli.core.device import to_device
from gptfast_cli.core.kernels import Backend, LayerCache, Linear, Norm, Placement
from gptfast_cli.core.model.cache import KVCache
from gptfast_cli.core.model.collective import ALONE, Collective
from gptfast_cli.core.model.layer import decoder_layer
from gptfast_cli.core.model.outlook import outlook
from gptfast_cli.core.model.rope import frequencies, rotation
from gptfast_cli.core.model.share import Share
from gptfast_cli.core.model.weights import ModelWeights

ALL_ROWS = slice(None)


class Transformer:
    """A decoder of the Llama class over weights that stay as their schemes store them."""

    has_own_threads = False

    def __init__(
        self,
        config: ModelConfig,
        weights: ModelWeights,
        backend: Backend,
        dtype: torch.dtype,
        *,
        kv_dtype: torch.dtype | None = None,
        together: Collective = ALONE,
    ) -> None:
        """`weights` are those of this rank's share of a model of the shape `config`.

        `kv_dtype` is the one that keys and values are kept in; None is that of computing.
        """
        self.config = config
        self.share = Share(config, together.rank, together.size)
        self.weights = weights
        self.dtype = dtype
        self.kv_dtype = kv_dtype or dtype
        self.device = next(iter(weights.embedding.parts.values())).device
        self._backend = backend
        self.together = together
        self._layer = decoder_layer(self.share.config, backend, together)
        self._frequencies = frequencies(config.head_dim, config.rope).to(self.device)

    @torch.inference_mode()
    def forward(self, tokens: Tensor, cache: KVCache, *, rows: slice = ALL_ROWS) -> Tensor:
        """Run tokens [batch, time] int64 through all layers, each row going on where its cache ends.

        The tokens are added to the cache. `rows` are the cache rows that the batch stands for.
        Returns [batch, time, dim], to be turned into logits where they are wanted.
        """
        time = tokens.shape[1]
        cache.begin(rows, max(cache.lengths[rows]) + time)
        x = self._pieces(tokens, cache, rows)
        cache.advance(rows, time)
        return x

    @torch.inference_mode()
    def logits(self, x: Tensor) -> Tensor:
        """Logits of x [..., dim] as `forward` returned it: [..., own tokens] float32."""
        return self._head(x)

    def next_logits(self, tokens: Tensor, positions: Tensor, layers: Sequence[LayerCache]) -> Tensor:
        """Logits of the tokens that come after tokens [batch, time] at their positions: [batch, own tokens] float32.

        Of tensors alone, and so fit to be compiled; it writes into the cache and counts nothing.
        """
        return self._head(self._hidden(tokens, positions, layers)[:, -1])

    @property
    def weight_bytes(self) -> int:
        """See Decoder."""
        return self.weights.n_bytes

    @property
    def embedding_bytes(self) -> int:
        """See Decoder."""
        return self.weights.embedding.n_bytes

    def step(self, tokens: Sequence[Sequence[int]], cache: KVCache, rows: slice) -> Tensor:
        """See Decoder."""
        batch, _ = self.inputs(tokens, cache, rows)
        return self._head(self._pieces(batch, cache, rows)[:, -1])

    def feed(
        self, tokens: Sequence[Tensor], cache: KVCache, rows: slice, wanted: Sequence[int] | None = None
    ) -> Tensor:
        """See Decoder; shorter rows go on with zeros, past what will be counted."""
        if max(map(len, tokens)) > cache.most_tokens:  # a short row is not to be written over so far past its end
            slots = range(*rows.indices(cache.n_rows))
            parts = [self._pieces(own[None], cache, slice(n, n + 1))[0] for n, own in zip(slots, tokens, strict=True)]
        else:
            padded = self._pieces(pad_sequence(list(tokens), batch_first=True), cache, rows)
            parts = [padded[row, : len(own)] for row, own in enumerate(tokens)]
        x = torch.cat(parts)
        return self._head(x if wanted is None else x[to_device(wanted, torch.int64, self.device)])

    def outlook(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """See Decoder."""
        return outlook(logits)

    def inputs(self, tokens: Sequence[Sequence[int]], cache: KVCache, rows: slice) -> tuple[Tensor, Tensor]:
        """Tokens and positions of a step as tensors, each [batch, time] int64."""
        flat = to_device([token for row in tokens for token in row], torch.int64, self.device)
        batch = flat.view(len(tokens), -1)
        return batch, positions(cache.lengths[rows], batch.shape[1], self.device)

    def tensors(self) -> Iterator[Tensor]:
        """Every tensor that a step reads but for its tokens, their positions and the cache."""
        weights = [self.weights.embedding, self.weights.norm, self.weights.head]
        for layer in self.weights.layers:
            linears = (layer.qkv, layer.attention_output, layer.gate_up, layer.down)
            weights += [layer.attention_norm, layer.ffn_norm, *(linear.weight for linear in linears)]
            weights += [linear.bias for linear in linears if linear.bias is not None]
        yield self._frequencies
        for weight in weights:
            yield from weight.parts.values()

    def new_cache(self, n_rows: int) -> KVCache:
        """An empty cache for `n_rows` sequences of this model."""
        return KVCache(self.share.config, n_rows, dtype=self.dtype, kv_dtype=self.kv_dtype, device=self.device)

    def _pieces(self, tokens: Tensor, cache: KVCache, rows: slice) -> Tensor:
        """The hidden states of tokens [batch, time], as many at a time as the cache can take in."""
        x, starts = [], cache.lengths[rows]
        for piece in torch.split(tokens, min(cache.most_tokens, tokens.shape[1]), dim=1):
            layers = cache.layers(rows=rows, n_keys=max(starts) + piece.shape[1])
            x.append(self._hidden(piece, positions(starts, piece.shape[1], self.device), layers))
            starts = [start + piece.shape[1] for start in starts]
        return torch.cat(x, dim=1)

    def _hidden(self, tokens: Tensor, positions: Tensor, layers: Sequence[LayerCache]) -> Tensor:
        place = Placement(positions, *rotation(positions, self._frequencies))
        x = self._embedded(tokens)
        for layer, cache in zip(self.weights.layers, layers, strict=True):
            x = self._layer(x, layer, place=place, cache=cache)
        return x

    def _embedded(self, tokens: Tensor) -> Tensor:
        if self.together.size == 1:
            return self._backend.embed(tokens, self.weights.embedding, self.dtype)
        own = tokens - self.share.tokens.start
        is_own = (own >= 0) & (own < self.weights.embedding.shape[0])
        x = self._backend.embed(own.where(is_own, 0), self.weights.embedding, self.dtype)
        return self.together.sum(x * is_own.unsqueeze(-1))  # every other rank has zeros there

    def _head(self, x: Tensor) -> Tensor:
        norm = Norm(self.weights.norm, self.config.norm_eps)
        return self._backend.head(x, Linear(self.weights.head), norm=norm)


def positions(starts: Sequence[int], time: int, device: torch.device) -> Tensor:
    """Positions of `time` tokens that go on from each start, [batch, time] int64."""
    first = to_device(starts, torch.int64, device).unsqueeze(-1)
    return first + torch.arange(time, device=device)
