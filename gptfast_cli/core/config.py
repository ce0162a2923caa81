"""The shape of a model: everything that its arithmetic needs to know besides the weights.

A model is described layer by layer. The names and shapes of its weights, their shards, the KV cache, the operations of
every backend and what quantization does with it are derived from that.
"""

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final, TypeAlias

MOST_ROWS: Final = 2**31 - 1
"""That a weight may have, an int of C."""

MOST_ELEMENTS: Final = 2**48
"""Of one weight, or of the keys of one layer: a hundred thousand times what any model has, and far from an int64."""

MOST_LAYERS: Final = 10_000


@dataclass(frozen=True, slots=True)
class LinearScaling:
    """Every RoPE frequency is divided by `factor` (position interpolation, Chen et al. 2023, arXiv:2306.15595)."""

    factor: float


@dataclass(frozen=True, slots=True)
class Llama3Scaling:
    """Low RoPE frequencies are divided by `factor`, high ones kept, those between blended (Llama 3.1).

    A frequency is low where its wavelength exceeds `original_context / low_freq_factor` tokens, and high where it
    is under `original_context / high_freq_factor`.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_context: int


@dataclass(frozen=True, slots=True)
class YarnScaling:
    """Low RoPE frequencies are divided by `factor`, high ones kept, those between blended (YaRN, arXiv:2309.00071).

    beta_fast, beta_slow: full turns within `original_context` from which a frequency is high, and up to which it is low
    attention_factor:     factor of queries and keys
    is_rounded:           whether the ends of the blend are rounded to whole pairs, outwards
    """

    factor: float
    original_context: int
    beta_fast: float
    beta_slow: float
    attention_factor: float
    is_rounded: bool = True


@dataclass(frozen=True, slots=True)
class LongRopeScaling:
    """The frequency of pair i is divided by `factors[i]` (LongRoPE, Ding et al. 2024, arXiv:2402.13753).

    All tokens of a text longer than `original_context` have the long factors; which ones a model is loaded with is a
    matter of its longest text (`ModelConfig.for_context`).

    longest_context:  tokens of the longest text
    attention_factor: factor of queries and keys
    is_long:          whether the long factors are those in use
    """

    short_factors: tuple[float, ...]
    long_factors: tuple[float, ...]
    original_context: int
    longest_context: int
    attention_factor: float
    is_long: bool = False

    @property
    def factors(self) -> tuple[float, ...]:
        """Those in use."""
        return self.long_factors if self.is_long else self.short_factors


@dataclass(frozen=True, slots=True)
class ProportionalScaling:
    """Only the first `n_rotated` pairs of a head turn, their frequencies divided by `factor` (Gemma 4)."""

    n_rotated: int
    factor: float


RopeScaling: TypeAlias = LinearScaling | Llama3Scaling | YarnScaling | LongRopeScaling | ProportionalScaling


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary position embedding: the base of its frequencies and how they are stretched, if they are.

    rotary_dim: elements at the start of a head that are rotated, an even number; None: all of them
    """

    theta: float
    scaling: RopeScaling | None = None
    rotary_dim: int | None = None


@dataclass(frozen=True, slots=True)
class QueryScaling:
    """Queries at position t are multiplied by 1 + beta * ln(1 + floor(t / original_context)) (Llama 4, Ministral 3)."""

    beta: float
    original_context: int


class QKNorm(StrEnum):
    """What queries and keys are normalized over, before they are rotated: each head by itself, or all heads at once."""

    HEAD = "head"
    WIDTH = "width"


class Activation(StrEnum):
    """That of a gated feed-forward network: activation(gate) * up (Shazeer 2020, arXiv:2002.05202)."""

    SILU = "silu"
    GELU_TANH = "gelu_tanh"  # with the approximation by tanh (Hendrycks & Gimpel 2016, arXiv:1606.08415)


class NormPlacement(StrEnum):
    """Where the norms of attention and of the feed-forward stand: before them, after them (before the sum), or both."""

    PRE = "pre"
    POST = "post"
    BOTH = "both"

    @property
    def is_before(self) -> bool:
        """Whether the input is normalized."""
        return self is not NormPlacement.POST

    @property
    def is_after(self) -> bool:
        """Whether the output is normalized."""
        return self is not NormPlacement.PRE


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """Causal attention; `n_heads // n_kv_heads` query heads share a key head.

    rope:          None: queries and keys are not rotated
    window:        a query sees itself and the `window - 1` tokens before it; None: all of them
    scale:         factor of the products of queries and keys; None: head_dim ** -0.5
    softcap:       scores become softcap * tanh(score / softcap) (Gemma 2, arXiv:2408.00118)
    query_scaling: factor of the queries by their position; None: 1
    """

    n_heads: int
    n_kv_heads: int
    head_dim: int
    rope: RopeConfig | None = None
    window: int | None = None
    scale: float | None = None
    softcap: float | None = None
    qk_norm: QKNorm | None = None
    qkv_bias: bool = False
    output_bias: bool = False
    query_scaling: QueryScaling | None = None

    @property
    def q_dim(self) -> int:
        """Width of all query heads together."""
        return self.n_heads * self.head_dim

    @property
    def kv_dim(self) -> int:
        """Width of all key heads together, and of all value heads."""
        return self.n_kv_heads * self.head_dim

    @property
    def qkv_dim(self) -> int:
        """Rows of the fused query, key and value projection."""
        return self.q_dim + 2 * self.kv_dim

    @property
    def score_scale(self) -> float:
        """Factor of the products of queries and keys."""
        return self.head_dim**-0.5 if self.scale is None else self.scale


@dataclass(frozen=True, slots=True)
class FeedForwardSpec:
    """A gated feed-forward network of `dim` features; `bias` is one of all three projections."""

    dim: int
    activation: Activation = Activation.SILU
    bias: bool = False


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """A decoder layer; what attention and the feed-forward add to their input is multiplied by `residual_scale`."""

    attention: AttentionSpec
    feed_forward: FeedForwardSpec
    norms: NormPlacement = NormPlacement.PRE
    residual_scale: float = 1.0

    def n_params(self, dim: int) -> int:
        """Number of parameters of the layer in a model of this width."""
        heads, ffn = self.attention, self.feed_forward
        matrices = dim * (heads.qkv_dim + heads.q_dim + 3 * ffn.dim)
        biases = heads.qkv_bias * heads.qkv_dim + heads.output_bias * dim + ffn.bias * (2 * ffn.dim + dim)
        norms = 2 * dim * (self.norms.is_before + self.norms.is_after)
        match heads.qk_norm:
            case QKNorm.HEAD:
                norms += 2 * heads.head_dim
            case QKNorm.WIDTH:
                norms += heads.q_dim + heads.kv_dim
        return matrices + biases + norms


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A decoder, in the field's terms; sizes count elements, `max_context` counts tokens.

    norm_offset:     added to the weights of norms, which are stored without it (1 in Gemma)
    embedding_scale: factor of the embedding, rounded to the compute dtype
    logit_scale:     factor of the logits
    logit_softcap:   logits become softcap * tanh(logit / softcap)
    """

    family: str
    layers: tuple[LayerSpec, ...] = field(repr=False)
    dim: int
    vocab_size: int
    max_context: int
    norm_eps: float
    tied_embeddings: bool = False
    norm_offset: float = 0.0
    embedding_scale: float = 1.0
    logit_scale: float = 1.0
    logit_softcap: float | None = None

    @property
    def n_layers(self) -> int:
        """Number of layers."""
        return len(self.layers)

    @property
    def n_params(self) -> int:
        """Number of parameters; a tied head counts once."""
        n_tables = 1 if self.tied_embeddings else 2
        return sum(layer.n_params(self.dim) for layer in self.layers) + self.dim * (n_tables * self.vocab_size + 1)

    @property
    def kinds(self) -> tuple[LayerSpec, ...]:
        """The different specs among the layers, in the order in which they come first."""
        return tuple(dict.fromkeys(self.layers))

    @property
    def widest_input(self) -> int:
        """Columns of the widest matrix of a layer."""
        return max(self.dim, *(size for kind in self.kinds for size in (kind.attention.q_dim, kind.feed_forward.dim)))

    @property
    def most_rows(self) -> int:
        """Rows of the tallest weight of a layer."""
        return max(size for kind in self.kinds for size in (kind.attention.qkv_dim, 2 * kind.feed_forward.dim))

    @property
    def most_elements(self) -> int:
        """Of the largest weight, or of the keys of one layer in the longest context if they are more."""
        kv_dim = max(kind.attention.kv_dim for kind in self.kinds)
        return max(self.dim * max(self.vocab_size, self.most_rows), self.max_context * kv_dim)

    def why_too_large(self) -> str | None:
        """What of it overflows, where a weight or a cache of this shape could not even be counted."""
        if self.most_rows > MOST_ROWS:
            return f"a weight would have {self.most_rows:,} rows, and at most {MOST_ROWS:,} are possible"
        if self.most_elements > MOST_ELEMENTS:
            return f"a tensor would have {self.most_elements:,} elements, and at most {MOST_ELEMENTS:,} are possible"
        return None

    @property
    def widest_window(self) -> int:
        """Tokens in the widest window of a layer; 0 if no layer has one."""
        return max(kind.attention.window or 0 for kind in self.kinds)

    @property
    def longest_context(self) -> int:
        """Tokens of the longest text that it reads, if it is loaded for that."""
        scalings = (kind.attention.rope.scaling for kind in self.kinds if kind.attention.rope is not None)
        longest = [each.longest_context for each in scalings if isinstance(each, LongRopeScaling)]
        return max([self.max_context, *longest])

    def for_context(self, n_tokens: int | None) -> "ModelConfig":
        """The model for texts of up to `n_tokens`: with the long factors of LongRoPE where it needs them."""
        if n_tokens is None or n_tokens <= self.max_context or self.longest_context == self.max_context:
            return self
        layers = {kind: _with_long_factors(kind) for kind in self.kinds}
        return replace(self, layers=tuple(layers[layer] for layer in self.layers), max_context=self.longest_context)

    def kv_bytes_per_token(self, bytes_per_element: int, n_before: int = 0) -> int:
        """Bytes of KV cache that a token after `n_before` others takes, in layers that still see all of these."""
        windows = ((layer.attention.window, layer.attention.kv_dim) for layer in self.layers)
        return 2 * sum(n for window, n in windows if window is None or window > n_before) * bytes_per_element


def _with_long_factors(layer: LayerSpec) -> LayerSpec:
    rope = layer.attention.rope
    if rope is None or not isinstance(rope.scaling, LongRopeScaling):
        return layer
    long = replace(rope, scaling=replace(rope.scaling, is_long=True))
    return replace(layer, attention=replace(layer.attention, rope=long))


@dataclass(frozen=True, slots=True)
class LlamaSizes:
    """The sizes of a Llama, whose layers are all alike."""

    n_layers: int
    dim: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    ffn_dim: int
    vocab_size: int
    max_context: int
    norm_eps: float
    rope: RopeConfig
    tied_embeddings: bool = False
    attention_bias: bool = False
    ffn_bias: bool = False

    def config(self) -> ModelConfig:
        """The shape of a model of these sizes."""
        attention = AttentionSpec(
            self.n_heads,
            self.n_kv_heads,
            self.head_dim,
            self.rope,
            qkv_bias=self.attention_bias,
            output_bias=self.attention_bias,
        )
        layer = LayerSpec(attention, FeedForwardSpec(self.ffn_dim, bias=self.ffn_bias))
        return ModelConfig(
            family="llama",
            layers=(layer,) * self.n_layers,
            dim=self.dim,
            vocab_size=self.vocab_size,
            max_context=self.max_context,
            norm_eps=self.norm_eps,
            tied_embeddings=self.tied_embeddings,
        )
