"""Tensor parallelism: the process group that a model is given, and the shard of each weight that a rank holds.

Query, key, value, gate and up are cut by their rows: each rank has whole heads and whole features of the feed-forward
network. Output and down are cut by the columns that these are multiplied with, so that what all ranks compute is summed
up: once after attention and once after the feed-forward network. Embedding and head are cut by tokens. Where there are
fewer key heads than ranks, several have the same one.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from gptfast_cli.core.config import ModelConfig
from gptfast_cli.core.errors import UsageError
from gptfast_cli.core.schemes import WHOLE, Block

_MOST_RANKS = 64


@dataclass(frozen=True, slots=True)
class ModelShard:
    """What rank `rank` of `size` has of a model of the shape `whole`."""

    whole: ModelConfig
    rank: int
    size: int

    @property
    def config(self) -> ModelConfig:
        """The shape of this part, in the terms of a model: its own heads, features and tokens."""
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
        """Key heads that these look at."""
        group = self.whole.n_heads // self.whole.n_kv_heads
        return slice(self.heads.start // group, -(-self.heads.stop // group))

    @property
    def features(self) -> slice:
        """Features of the feed-forward network."""
        return _even(self.whole.ffn_dim, self.rank, self.size)

    @property
    def tokens(self) -> slice:
        """Tokens whose embeddings and logits it has; the last rank may have fewer."""
        n = self.n_tokens
        return slice(min(self.rank * n, self.whole.vocab_size), min((self.rank + 1) * n, self.whole.vocab_size))

    @property
    def n_tokens(self) -> int:
        """Tokens of every rank but the last ones."""
        return -(-self.whole.vocab_size // self.size)

    def block(self, name: str) -> Block | None:
        """The part of the weight of a name, as in `weight_shapes`; None if the first rank has it alone."""
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
    """Raise UsageError if heads or the features of the feed-forward network do not divide among so many ranks."""
    obstacle = next(_obstacles(config, size), None)
    if obstacle is not None:
        even = [n for n in range(1, _MOST_RANKS + 1) if not any(_obstacles(config, n))]
        raise UsageError(f"--tp {size}: {obstacle}.", f"It divides among {', '.join(map(str, even))}.")


def _obstacles(config: ModelConfig, size: int) -> Iterator[str]:
    if config.n_heads % size:
        yield f"{config.n_heads} query heads do not divide among {size}"
    if config.n_kv_heads % size and size % config.n_kv_heads:
        yield f"{config.n_kv_heads} key and value heads do not divide among {size}"
    if config.ffn_dim % size:
        yield f"{config.ffn_dim} elements of the feed-forward do not divide among {size}"


def _even(count: int, rank: int, size: int) -> slice:
    n = count // size
    return slice(rank * n, (rank + 1) * n)


def _length(part: slice) -> int:
    return int(part.stop - part.start)


def _scaled(part: slice, factor: int) -> slice:
    return slice(part.start * factor, part.stop * factor)


def _shifted(part: slice, by: int) -> slice:
    return slice(part.start + by, part.stop + by)
