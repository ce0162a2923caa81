"""A decoder on the CPU engine: one native call a step, whatever the step is.

Decoding, batches, prefill and verification go through the same kernels and add up in the same order, so that they agree
to the bit in every dtype. In bfloat16 the residual stream is float32 all the same; only what products read is narrow.
"""

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gptfast_cli.core.backends import CPU
from gptfast_cli.core.backends.base import KEY_BLOCK, Linear
from gptfast_cli.core.backends.cpu.engine import (
    CachePointers,
    ComputeOptions,
    NativeEngine,
    StepsAhead,
    TokenBatch,
    addresses,
    layer_kv,
)
from gptfast_cli.core.backends.cpu.library import MAX_HEAD_DIM, LayerKV, MatrixRole, NormRole, SamplingParams
from gptfast_cli.core.backends.cpu.rounds import EngineHandle
from gptfast_cli.core.backends.cpu.views import SCHEMES, unsupported_weights
from gptfast_cli.core.config import ModelConfig
from gptfast_cli.core.device import dtype_name
from gptfast_cli.core.models.decoder import TokenLoop
from gptfast_cli.core.models.kv_cache import KVCache
from gptfast_cli.core.models.process_group import ALONE, ProcessGroup
from gptfast_cli.core.models.rope import LayerRotations, rotation
from gptfast_cli.core.models.sharding import ModelShard
from gptfast_cli.core.models.weights import assemble_layer
from gptfast_cli.core.schemes import Block, Weight

_LARGEST_SIZE = 1 << 26  # of any other dimension: products of some are C's int


@dataclass(frozen=True, slots=True)
class Unsupported:
    """Why the engine cannot run a model: the end of "The CPU engine does not run ...", and what it does run.

    is_noted: worth a note when the model runs on the reference instead
    """

    what: str
    hint: str
    is_noted: bool = False


def unsupported(
    config: ModelConfig, outline: Mapping[str, Weight], dtype: torch.dtype, device: torch.device
) -> Unsupported | None:
    """What keeps the engine from running a model of this shape, with weights like these; None if nothing."""
    head_dims = {kind.attention.head_dim for kind in config.kinds}
    lanes = {torch.float32: 16, torch.bfloat16: 32}.get(dtype)
    if (
        device.type != "cpu"
        or lanes is None
        or any(head_dim % lanes or head_dim > MAX_HEAD_DIM for head_dim in head_dims)
        or max(config.dim, config.most_rows, config.vocab_size) > _LARGEST_SIZE
    ):
        return Unsupported(
            f"heads of {', '.join(map(str, sorted(head_dims)))} in {dtype_name(dtype)} on {device}",
            "It runs float32 and bfloat16 on a CPU, heads of whole vectors up to 256; leave out --backend.",
        )
    if (unknown := next(unsupported_weights(outline), None)) is not None:
        hint = f"It runs {', '.join(sorted(SCHEMES))}; leave out --backend."
        return Unsupported(unknown, hint, is_noted=True)
    return None


class NativeModel:
    """A Decoder on the CPU engine; `take` is called once for each block of `weight_blocks`, and keeps packed copies."""

    backend = CPU
    has_own_threads = True
    compilable = None

    def __init__(
        self,
        library: ctypes.CDLL,
        config: ModelConfig,
        computing: ComputeOptions,
        *,
        n_threads: int,
        group: ProcessGroup = ALONE,
    ) -> None:
        """Of the embedding every rank has all, of which it reads single rows; of all else its shard."""
        assert unsupported(config, {}, computing.dtype, torch.device("cpu")) is None
        self.config = config
        self.shard = ModelShard(config, group.rank, group.size)
        self.group = group
        self.dtype, self.kv_dtype = computing.dtype, computing.kv_dtype
        self.device = torch.device("cpu")
        self.weight_bytes = self.embedding_bytes = 0
        rotations = LayerRotations(config.layers, self.device)
        self._engine = NativeEngine(library, self.shard.config, rotations.kind_of, computing, n_threads=n_threads)
        if group.size > 1:
            self._engine.set_sum(group.sum, is_first=group.rank == 0, n_ranks=group.size)
        self._frequencies = rotations.frequencies
        self._rotations: list[tuple[Tensor, Tensor]] = []
        self._n_rotated = 0  # positions that the rotations reach to
        self._embedding: Weight | None = None
        self._n_layers = 0  # taken over so far
        # of the cache that was used last, at its version then
        self._place: tuple[KVCache, int, CachePointers] | None = None

    def take(self, block: Mapping[str, Weight]) -> None:
        """Take over the weights of the next block; it may be forgotten then, but for the embedding."""
        self.weight_bytes += sum(weight.n_bytes for weight in block.values())
        if "embedding" in block:
            self._embedding = block["embedding"]
            self.embedding_bytes = self._embedding.n_bytes
            self._engine.set_embedding(self._embedding)
        elif "norm" in block:
            assert self._embedding is not None
            self._engine.set_norm(self._n_layers, NormRole.ATTENTION_NORM, block["norm"])
            head = block["head"] if "head" in block else self._embedding.block(Block(rows=(self.shard.tokens,)))
            self._engine.set_linear(self._n_layers, MatrixRole.QKV, Linear(head))
        else:
            self._take_layer(block)

    def new_cache(self, n_rows: int) -> KVCache:
        return KVCache(
            self.shard.config,
            n_rows,
            dtype=self.dtype,
            kv_dtype=self.kv_dtype,
            device=self.device,
            is_stacked=False,
        )

    @property
    def token_loop(self) -> TokenLoop | None:
        """The model itself, or None if it is sharded: sampling needs the logits of the whole vocabulary."""
        return self if self.group.size == 1 else None

    def step(self, tokens: Sequence[Sequence[int]], cache: KVCache, rows: slice) -> Tensor:
        cache.begin(rows, [len(row) for row in tokens])
        return self._run(_batch(tokens, cache, rows), cache)

    def feed(
        self, tokens: Sequence[Tensor], cache: KVCache, rows: slice, wanted: Sequence[int] | None = None
    ) -> Tensor:
        cache.begin(rows, [len(row) for row in tokens])
        batch = _batch([row.tolist() for row in tokens], cache, rows)
        batch.outputs = list(range(len(batch.tokens)) if wanted is None else wanted)
        return self._run(batch, cache)

    def logsumexp_argmax(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        return self._engine.logsumexp_argmax(logits)

    def run_ahead(
        self,
        tokens: Sequence[Sequence[int]],
        cache: KVCache,
        params: Sequence[SamplingParams],
        uniforms: Sequence[Sequence[float]],
        stops: Sequence[int],
        *,
        keep_logits: bool = False,
    ) -> StepsAhead:
        """Feed tokens to the first rows of a cache, and then, step by step, what each row chose; see Engine.

        Keys and values are written, but not yet counted.
        """
        rows = slice(0, len(tokens))
        cache.begin(rows, [len(row) + len(uniforms) - 1 for row in tokens])
        batch = _batch(tokens, cache, rows)
        return self._engine.run_ahead(batch, self._place_of(cache), params, uniforms, stops, keep_logits=keep_logits)

    def handle(self, cache: KVCache, n_rows: int, n_tokens: int) -> EngineHandle:
        """The engine, and where a cache stands, for rounds of speculation with another model."""
        cache.begin(slice(0, n_rows), [n_tokens - length for length in cache.lengths[:n_rows]])
        return EngineHandle(self._engine, self._place_of(cache))

    def _run(self, batch: TokenBatch, cache: KVCache) -> Tensor:
        return self._engine.run(batch, self._place_of(cache))

    def _take_layer(self, block: Mapping[str, Weight]) -> None:
        layer, weights = self._n_layers, assemble_layer(block)
        for norm in NormRole:
            if (weight := getattr(weights, norm.name.lower())) is not None:
                self._engine.set_norm(layer, norm, weight)
        for role, linear in (
            (MatrixRole.QKV, weights.qkv),
            (MatrixRole.OUTPUT, weights.attention_output),
            (MatrixRole.GATE_UP, weights.gate_up),
            (MatrixRole.DOWN, weights.down),
        ):
            self._engine.set_linear(layer, role, linear)
        self._n_layers += 1

    def _place_of(self, cache: KVCache) -> CachePointers:
        """Pointers into a cache; they hold until one of its tables changes."""
        if self._place is None or self._place[0] is not cache or self._place[1] != cache.version:
            if cache.capacity > self._n_rotated:
                self._n_rotated = 2 * cache.capacity
                self._rotations = [rotation(torch.arange(self._n_rotated), each) for each in self._frequencies]
            n_blocks, layers = cache.capacity // KEY_BLOCK, (LayerKV * self.config.n_layers)()
            for group in cache.groups:
                blocks, layout = addresses(group.addresses(n_blocks)), group.layout
                for index, layer in enumerate(layout.group.layers):
                    recent = group.recent[index] if group.recent else None
                    layers[layer] = layer_kv(
                        blocks, index * layout.layer_bytes, layout.head_bytes, layout.offsets, recent
                    )
            self._place = cache, cache.version, CachePointers(layers, n_blocks, self._rotations)
        return self._place[2]


def _batch(tokens: Sequence[Sequence[int]], cache: KVCache, rows: slice) -> TokenBatch:
    batch = TokenBatch()
    for slot, row in zip(range(*rows.indices(cache.n_rows)), tokens, strict=True):
        length = cache.lengths[slot]
        batch.tokens += row
        batch.positions += range(length, length + len(row))
        batch.slots += [slot] * len(row)
        batch.outputs.append(len(batch.tokens) - 1)
    return batch
