"""The CPU engine as a Python object: it passes tensors to the native library as pointers."""

import contextlib
import ctypes
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from ctypes import c_double, c_float, c_int32, c_int64, c_void_p
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gptfast_cli.core.backends.base import Linear
from gptfast_cli.core.backends.cpu.library import (
    Activation,
    Ahead,
    Call,
    Dimensions,
    LayerKV,
    LayerShape,
    LogsumexpArgmax,
    MatrixRole,
    NormRole,
    QKNorm,
    Rotation,
    SamplingParams,
    Status,
    Sum,
)
from gptfast_cli.core.backends.cpu.views import Views
from gptfast_cli.core.config import LayerSpec, ModelConfig
from gptfast_cli.core.schemes import Weight, schemes
from gptfast_cli.core.token_ids import TokenIdError


@dataclass(frozen=True, slots=True)
class CachePointers:
    """Pointers to the KV cache of all layers, and the RoPE table.

    layers:         of each layer
    n_blocks:       of a row, at most
    rotations:      cosines and sines of each kind of RoPE, [positions, rotary_dim / 2] float32, of all positions in the
                    blocks
    """

    layers: "ctypes.Array[LayerKV]"
    n_blocks: int
    rotations: Sequence[tuple[Tensor, Tensor]]


@dataclass(frozen=True, slots=True)
class ComputeOptions:
    """The compute dtype, and the KV-cache dtype: the same, or int8.

    float_activations: products with quantized weights take float32 inputs instead of 8-bit codes
    """

    dtype: torch.dtype
    kv_dtype: torch.dtype
    float_activations: bool = False

    @property
    def is_narrow(self) -> bool:
        """Whether products may take bfloat16 or 8-bit inputs, where the CPU has instructions for them."""
        return self.dtype is torch.bfloat16 and not self.float_activations


@dataclass(slots=True)
class TokenBatch:
    """Tokens of a call: those of one cache row are adjacent, in the order of their positions."""

    tokens: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    slots: list[int] = field(default_factory=list)  # the cache row of each
    outputs: list[int] = field(default_factory=list)  # those whose logits are wanted


@dataclass(frozen=True, slots=True)
class StepsAhead:
    """The result of `run_ahead`.

    tokens: [steps][rows]; `vocab_size` where a logit was NaN or infinite
    logits: [steps, rows, vocab_size] float32 that they were sampled from; None unless `keep_logits`
    """

    tokens: list[list[int]]
    logits: Tensor | None


class NativeEngine:
    """The packed weights of a model, and the threads that run it."""

    def __init__(
        self,
        library: ctypes.CDLL,
        config: ModelConfig,
        rotations: Sequence[int],
        options: ComputeOptions,
        *,
        n_threads: int,
    ) -> None:
        """`rotations`: the number of each layer's RoPE among those of CachePointers, or -1."""
        self.library = library
        self._vocab_size = config.vocab_size
        dimensions = Dimensions(
            config.n_layers,
            config.dim,
            config.vocab_size,
            (LayerShape * config.n_layers)(*map(_layer_shape, config.layers, rotations)),
            config.norm_eps,
            float(torch.tensor(config.embedding_scale, dtype=options.dtype)),
            config.logit_scale,
            config.logit_softcap or 0,
            options.dtype is torch.bfloat16,
            options.kv_dtype is torch.int8,
            options.is_narrow,
        )
        pointer = c_void_p()
        library.gptfast_engine_new(dimensions, n_threads, pointer)
        self.pointer = pointer
        self._norm_offset = config.norm_offset
        self._embedding: Views | None = None  # held: the library reads it in place
        self._all_reduce: _AllReduce | None = None

    def __del__(self) -> None:
        if hasattr(self, "pointer"):
            self.library.gptfast_engine_free(self.pointer)

    def set_linear(self, layer: int, role: MatrixRole, linear: Linear) -> None:
        """Pack a matrix of a layer; the head is number 0 of the layer after the last. Raises MemoryError."""
        bias = None if linear.bias is None else _floats(linear.bias)
        views = Views(linear.weight, is_interleaved=role is MatrixRole.GATE_UP)  # held until the call is over
        pointer = None if bias is None else bias.data_ptr()
        self.library.gptfast_set_matrix(self.pointer, layer, role, views.array, len(views.array), pointer)

    def set_norm(self, layer: int, role: NormRole, weight: Weight) -> None:
        """Copy the weight of a norm; the last norm is number 0 of the layer after the last."""
        values = _floats(weight) + self._norm_offset  # held until the call is over
        self.library.gptfast_set_norm(self.pointer, layer, role, values.data_ptr())

    def set_embedding(self, weight: Weight) -> None:
        """Read embeddings from this matrix, in place."""
        self._embedding = Views(weight)
        self.library.gptfast_set_embedding(self.pointer, self._embedding.array)

    def set_sum(self, total: Callable[[Tensor], Tensor], *, is_first: bool, n_ranks: int) -> None:
        """Run as one rank of several: `total` is the all-reduce of x [rows, columns] float32.

        `run` raises what it raises. The first rank adds the residual.
        """
        self._all_reduce = _AllReduce(total)
        self._sum = Sum(self._all_reduce)  # held as long as the library has it
        self.library.gptfast_set_sum(self.pointer, self._sum, is_first, n_ranks)

    def run(self, batch: TokenBatch, cache: CachePointers) -> Tensor:
        """Run tokens through the model and write their keys and values; returns logits [outputs, vocab_size] float32.

        Raises TokenIdError for a token without an embedding, before anything is read or written.
        """
        logits = torch.empty(len(batch.outputs), self._vocab_size)
        with contextlib.nullcontext() if self._all_reduce is None else _signals_wait():
            is_done = self.library.gptfast_run(self.pointer, call_of(batch, cache, logits))
        if not is_done:
            raise self.token_error(batch.tokens)
        if self._all_reduce is not None and self._all_reduce.failure is not None:
            raise self._all_reduce.failure
        return logits

    def run_ahead(
        self,
        batch: TokenBatch,
        cache: CachePointers,
        params: Sequence[SamplingParams],
        uniforms: Sequence[Sequence[float]],
        stops: Sequence[int],
        *,
        keep_logits: bool = False,
    ) -> StepsAhead:
        """Run tokens, then decode one sampled token per output and step, for `len(uniforms)` steps.

        params: of each output; uniforms: [steps][outputs] numbers in [0, 1)
        stops:  the step that samples one of these tokens is the last

        Raises TokenIdError as `run` does.
        """
        n_steps, n_rows = len(uniforms), len(params)
        logits = torch.empty(n_steps if keep_logits else 1, n_rows, self._vocab_size)
        chosen = (c_int64 * (n_steps * n_rows))()
        ahead = Ahead(
            n_steps,
            (SamplingParams * n_rows)(*params),
            (c_double * (n_steps * n_rows))(*(number for step in uniforms for number in step)),
            len(stops),
            (c_int64 * len(stops))(*stops),
            chosen,
            n_rows * self._vocab_size if keep_logits else 0,
        )
        n_done = self.library.gptfast_run_ahead(self.pointer, call_of(batch, cache, logits), ahead)
        if n_done == Status.NO_EMBEDDING:
            raise self.token_error(batch.tokens)
        tokens = [list(chosen[step * n_rows : (step + 1) * n_rows]) for step in range(n_done)]
        return StepsAhead(tokens, logits[:n_done] if keep_logits else None)

    def token_error(self, tokens: Sequence[int]) -> TokenIdError:
        """The error for the first of these tokens that has no embedding."""
        n = self.n_embeddings
        return TokenIdError(next((token for token in tokens if not 0 <= token < n), n), n)

    @property
    def n_embeddings(self) -> int:
        """Rows of the embedding."""
        return 0 if self._embedding is None else self._embedding.array[0].n_rows

    def logsumexp_argmax(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """log(sum(exp(row))) [rows] float64 and argmax [rows] int64 of logits [rows, vocab_size] float32.

        The first is NaN if a logit is NaN or infinite; the second is the lowest id among equals.
        """
        n_rows, vocab_size = logits.shape
        logits = logits.contiguous()
        log_totals, likeliest = torch.empty(n_rows, dtype=torch.float64), torch.empty(n_rows, dtype=torch.int64)
        request = LogsumexpArgmax(logits.data_ptr(), n_rows, vocab_size, log_totals.data_ptr(), likeliest.data_ptr())
        self.library.gptfast_logsumexp_argmax(self.pointer, request)
        return log_totals, likeliest


class _AllReduce:
    """The library's callback for an all-reduce; a callback cannot raise, so the failure is kept for `run`."""

    def __init__(self, total: Callable[[Tensor], Tensor]) -> None:
        self._total = total
        self.failure: Exception | None = None

    def __call__(self, address: int, n_rows: int, n_columns: int, stride: int) -> None:
        if self.failure is not None:
            return
        memory = (c_float * (n_rows * stride)).from_address(address)
        x = torch.frombuffer(memory, dtype=torch.float32).view(n_rows, stride)[:, :n_columns]
        try:
            x.copy_(self._total(x.contiguous()))
        except Exception as error:  # noqa: BLE001  # nothing may be raised into the library
            self.failure = error


@contextlib.contextmanager
def _signals_wait() -> Iterator[None]:
    """Deliver signals at the end of the block: an exception raised inside a callback would be lost."""
    came: list[int] = []
    is_main = threading.current_thread() is threading.main_thread()  # which alone handles signals
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM) if is_main}
    ours = {number: handler for number, handler in handlers.items() if callable(handler)}
    for number in ours:
        signal.signal(number, lambda number, _: came.append(number))
    try:
        yield
    finally:
        for number, handler in ours.items():
            signal.signal(number, handler)
    for late in came:
        signal.raise_signal(late)


def call_of(batch: TokenBatch, cache: CachePointers, logits: Tensor) -> Call:
    """The library's view of a batch, its cache and its logits; the caller holds all three until the call returns."""
    n_rows, n_outputs = len(batch.tokens), len(batch.outputs)
    return Call(
        n_rows,
        (c_int64 * n_rows)(*batch.tokens),
        (c_int32 * n_rows)(*batch.positions),
        (c_int32 * n_rows)(*batch.slots),
        n_outputs,
        (c_int32 * n_outputs)(*batch.outputs),
        logits.data_ptr(),
        cache.layers,
        cache.n_blocks,
        (Rotation * len(cache.rotations))(*(Rotation(cos.data_ptr(), sin.data_ptr()) for cos, sin in cache.rotations)),
    )


def layer_kv(
    blocks: "ctypes.Array[c_void_p]", layer_at: int, head_bytes: int, offsets: Mapping[str, int], recent: Tensor | None
) -> LayerKV:
    """The library's view of a layer's keys and values, whose memory the caller holds.

    blocks:     addresses of the blocks of each row, [rows, n_blocks]
    layer_at:   bytes from the start of a block to the heads of the layer
    head_bytes: of a head in a block, and `offsets` of its parts, by the names of FloatCache or Int8Cache
    recent:     keys of an Int8Cache
    """
    return LayerKV(
        blocks,
        layer_at,
        head_bytes,
        offsets.get("values", offsets.get("value_codes", 0)),
        offsets.get("key_scales", 0),
        offsets.get("value_scales", 0),
        None if recent is None else recent.data_ptr(),
    )


def _layer_shape(layer: LayerSpec, rotation: int) -> LayerShape:
    attention = layer.attention
    rope, scaling = attention.rope, attention.query_scaling
    return LayerShape(
        attention.n_heads,
        attention.n_kv_heads,
        attention.head_dim,
        layer.feed_forward.dim,
        rotation,
        0 if rope is None else rope.rotary_dim or attention.head_dim,
        attention.window or 0,
        attention.score_scale,
        attention.softcap or 0,
        layer.residual_scale,
        0 if scaling is None else scaling.beta,
        1 if scaling is None else scaling.original_context,
        QKNorm.NONE if attention.qk_norm is None else QKNorm[attention.qk_norm.name],
        Activation[layer.feed_forward.activation.name],
    )


def addresses(numbers: Sequence[int]) -> "ctypes.Array[c_void_p]":
    """Addresses of memory, which the caller holds."""
    return (c_void_p * len(numbers))(*numbers)


def _floats(weight: Weight) -> Tensor:
    return schemes[weight.scheme].dense(weight, torch.float32).contiguous()
