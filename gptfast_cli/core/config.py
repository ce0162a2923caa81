"""The shape of a model: everything that its arithmetic needs to know besides the weights."""

from dataclasses import dataclass
from typing import Final

MOST_ROWS: Final = 2**31 - 1
"""That a weight may have, an int of C."""

MOST_ELEMENTS: Final = 2**48
"""Of one weight, or of the keys of one layer: a hundred thousand times what any model has, and far from an int64."""


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
class RopeConfig:
    """Rotary position embedding: the base of its frequencies and how they are stretched, if they are."""

    theta: float
    scaling: LinearScaling | Llama3Scaling | None = None


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A decoder of the Llama class, in the field's terms; sizes count elements, `max_context` counts tokens."""

    family: str
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
    def most_rows(self) -> int:
        """Rows of the tallest weight of a layer."""
        return max(self.qkv_dim, 2 * self.ffn_dim)

    @property
    def most_elements(self) -> int:
        """Of the largest weight, or of the keys of one layer in the longest context if they are more."""
        return max(self.dim * max(self.vocab_size, self.most_rows), self.max_context * self.kv_dim)

    def why_too_large(self) -> str | None:
        """What of it overflows, where a weight or a cache of this shape could not even be counted."""
        if self.most_rows > MOST_ROWS:
            return f"a weight would have {self.most_rows:,} rows, and at most {MOST_ROWS:,} are possible"
        if self.most_elements > MOST_ELEMENTS:
            return f"a tensor would have {self.most_elements:,} elements, and at most {MOST_ELEMENTS:,} are possible"
        return None

    def kv_bytes_per_token(self, bytes_per_element: int) -> int:
        """Bytes of KV cache that one token takes in all layers."""
        return 2 * self.n_layers * self.kv_dim * bytes_per_element
