"""Tensor parallelism (Megatron-LM, Shoeybi et al. 2019, arXiv:1909.08053): the shard of each weight on a rank.

Query, key, value, gate and up are sharded by rows: each rank has whole heads and whole features of the feed-forward.
Output and down are sharded by columns, so that an all-reduce follows attention and the feed-forward. Embedding and head
are sharded by tokens. With fewer KV heads than ranks, KV heads are replicated.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from gptfast_cli.core.config import ModelConfig
from gptfast_cli.core.errors import UsageError
from gptfast_cli.core.schemes import WHOLE, Block

_MOST_RANKS = 64


@dataclass(frozen=True, slots=True)
class ModelShard:
    """The shard of rank `rank` of `size`, of a model with the shape `whole`."""

    whole: ModelConfig
    rank: int
    size: int

    @property
    def config(self) -> ModelConfig:
        """The shape of the shard: its own heads, features and tokens."""
        return replace(
            self.whole,
            n_heads=_length(self.heads),
            n_kv_heads=_length(self.kv_heads),
            ffn_dim=_length(self.features),
            vocab_size=_length(self.tokens),
        )

    @property
    def heads(self) -> slice:
        """Query heads."""
        return _even(self.whole.n_heads, self.rank, self.size)

    @property
    def kv_heads(self) -> slice:
        """KV heads of the query heads."""
        group = self.whole.n_heads // self.whole.n_kv_heads
        return slice(self.heads.start // group, -(-self.heads.stop // group))

    @property
    def features(self) -> slice:
        """Features of the feed-forward network."""
        return _even(self.whole.ffn_dim, self.rank, self.size)

    @property
    def tokens(self) -> slice:
        """Tokens whose embeddings and logits this rank holds; the last ranks may have fewer."""
        n = self.n_tokens
        return slice(min(self.rank * n, self.whole.vocab_size), min((self.rank + 1) * n, self.whole.vocab_size))

    @property
    def n_tokens(self) -> int:
        """Tokens per rank, before the last ones."""
        return -(-self.whole.vocab_size // self.size)

    def block(self, name: str) -> Block | None:
        """The block of a weight, by its name in `weight_shapes`; None if only the first rank holds it."""
        rows_of_qkv, rows_of_gate_up = self._rows_of_qkv(), self._rows_of_gate_up()
        added_once = WHOLE if self.rank == 0 else None
        blocks = {
            "embedding": Block(rows=(self.tokens,)),
            "qkv": rows_of_qkv,
            "qkv_bias": rows_of_qkv,
            "attention_output": Block(columns=_scaled(self.heads, self.whole.head_dim)),
            "attention_output_bias": added_once,
            "gate_up": rows_of_gate_up,
            "gate_up_bias": rows_of_gate_up,
            "down": Block(columns=self.features),
            "down_bias": added_once,
            "head": Block(rows=(self.tokens,)),
        }
        return blocks.get(name.rpartition(".")[2], WHOLE)

    def _rows_of_qkv(self) -> Block:
        queries, keys = (_scaled(heads, self.whole.head_dim) for heads in (self.heads, self.kv_heads))
        first_key, first_value = self.whole.q_dim, self.whole.q_dim + self.whole.kv_dim
        return Block(rows=(queries, _shifted(keys, first_key), _shifted(keys, first_value)))

    def _rows_of_gate_up(self) -> Block:
        return Block(rows=(self.features, _shifted(self.features, self.whole.ffn_dim)))


def check_divides(config: ModelConfig, size: int) -> None:
    """Raise UsageError if heads or features of the feed-forward are not divisible by `size`."""
    obstacle = next(_obstacles(config, size), None)
    if obstacle is not None:
        even = [n for n in range(1, _MOST_RANKS + 1) if not any(_obstacles(config, n))]
        raise UsageError(f"--tp {size}: {obstacle}.", f"Possible values: {', '.join(map(str, even))}.")


def _obstacles(config: ModelConfig, size: int) -> Iterator[str]:
    if config.n_heads % size:
        yield f"{config.n_heads} query heads are not divisible by {size}"
    if config.n_kv_heads % size and size % config.n_kv_heads:
        yield f"{config.n_kv_heads} KV heads are not divisible by {size}"
    if config.ffn_dim % size:
        yield f"ffn_dim {config.ffn_dim} is not divisible by {size}"


def _even(count: int, rank: int, size: int) -> slice:
    n = count // size
    return slice(rank * n, (rank + 1) * n)


def _length(part: slice) -> int:
    return int(part.stop - part.start)


def _scaled(part: slice, factor: int) -> slice:
    return slice(part.start * factor, part.stop * factor)


def _shifted(part: slice, by: int) -> slice:
    return slice(part.start + by, part.stop + by)
