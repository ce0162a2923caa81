"""One decoder layer, in the five operations of a backend."""

from dataclasses import dataclass

from torch import Tensor

from gptfast_cli.core.config import ModelConfig
from gptfast_cli.core.kernels import AttentionSpec, Backend, LayerCache, Norm, Placement
from gptfast_cli.core.kernels.phases import phase
from gptfast_cli.core.model.weights import LayerWeights


@dataclass(frozen=True, slots=True)
class DecoderLayer:
    """What the layers of a model have in common: everything but their weights."""

    backend: Backend
    attention: AttentionSpec
    norm_eps: float

    def __call__(self, x: Tensor, layer: LayerWeights, *, place: Placement, cache: LayerCache) -> Tensor:
        """Run x [batch, time, dim] through a layer, writing keys and values into its cache: x again."""
        backend, spec, eps = self.backend, self.attention, self.norm_eps
        with phase("project_qkv"):
            norm = Norm(layer.attention_norm, eps)
            q = backend.project_qkv(x, layer.qkv, norm=norm, place=place, cache=cache, spec=spec)
        with phase("attend"):
            heads = backend.attend(q, cache, place=place, spec=spec)
        with phase("project_output"):
            x = backend.project_output(heads, layer.attention_output, residual=x)
        with phase("gate_up"):
            hidden = backend.gate_up(x, layer.gate_up, norm=Norm(layer.ffn_norm, eps))
        with phase("down"):
            return backend.down(hidden, layer.down, residual=x)


def decoder_layer(config: ModelConfig, backend: Backend) -> DecoderLayer:
    """The layer of a model on a backend."""
    return DecoderLayer(backend, AttentionSpec(config.n_heads, config.n_kv_heads, config.head_dim), config.norm_eps)
