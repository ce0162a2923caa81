"""One decoder layer, in the five operations of a backend."""

from dataclasses import dataclass

import torch
from torch import Tensor

from gptfast_cli.core.config import ModelConfig
from gptfast_cli.core.kernels import AttentionSpec, Backend, LayerCache, Norm, Placement
from gptfast_cli.core.kernels.phases import phase
from gptfast_cli.core.model.collective import ALONE, Collective
from gptfast_cli.core.model.weights import LayerWeights


@dataclass(frozen=True, slots=True)
class DecoderLayer:
    """What the layers of a model have in common: everything but their weights."""

    backend: Backend
    attention: AttentionSpec
    norm_eps: float
    together: Collective = ALONE

    def __call__(self, x: Tensor, layer: LayerWeights, *, place: Placement, cache: LayerCache) -> Tensor:
        """Run x [batch, time, dim] through a layer, writing keys and values into its cache: x again."""
        return self.feed_forward(self.join(x, self.heads(x, layer, place=place, cache=cache), layer), layer)

    def heads(self, x: Tensor, layer: LayerWeights, *, place: Placement, cache: LayerCache) -> Tensor:
        """The first part, in which tokens see one another: what the heads make of that, [batch, time, q_dim]."""
        backend, spec = self.backend, self.attention
        with phase("project_qkv"):
            norm = Norm(layer.attention_norm, self.norm_eps)
            q = backend.project_qkv(x, layer.qkv, norm=norm, place=place, cache=cache, spec=spec)
        with phase("attend"):
            return backend.attend(q, cache, place=place, spec=spec)

    def join(self, x: Tensor, heads: Tensor, layer: LayerWeights) -> Tensor:
        """The second part: x with what the heads add to it."""
        with phase("project_output"):
            return self._summed(self.backend.project_output(heads, layer.attention_output, residual=self._once(x)))

    def feed_forward(self, x: Tensor, layer: LayerWeights) -> Tensor:
        """The third part, each token by itself: x with what the feed-forward network adds to it."""
        with phase("gate_up"):
            hidden = self.backend.gate_up(x, layer.gate_up, norm=Norm(layer.ffn_norm, self.norm_eps))
        with phase("down"):
            return self._summed(self.backend.down(hidden, layer.down, residual=self._once(x)))

    def _once(self, residual: Tensor) -> Tensor:
        """The residual on one rank, and nothing on the others: what they have is summed up."""
        return residual if self.together.rank == 0 else torch.zeros_like(residual)

    def _summed(self, x: Tensor) -> Tensor:
        with phase("sum"):
            return self.together.sum(x)


def decoder_layer(config: ModelConfig, backend: Backend, together: Collective = ALONE) -> DecoderLayer:
    """The layer of a model, or of the part that a rank has, on a backend."""
    attention = AttentionSpec(config.n_heads, config.n_kv_heads, config.head_dim)
    return DecoderLayer(backend, attention, config.norm_eps, together)
