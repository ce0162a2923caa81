"""The native engine with tensors in place of pointers."""

import contextlib
import ctypes
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from ctypes import c_double, c_float, c_int32, c_int64, c_void_p
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gptfast_cli.core.backends import Linear
from gptfast_cli.core.backends.cpu.library import (
    NO_EMBEDDING,
    Ahead,
    Call,
    Choice,
    Dimensions,
    Outlook,
    Stored,
    Sum,
)
from gptfast_cli.core.config import ModelConfig
from gptfast_cli.core.schemes import Weight, schemes
from gptfast_cli.core.token_ids import TokenIdError

QKV, OUTPUT, GATE_UP, DOWN = range(4)
ATTENTION_NORM, FFN_NORM = range(2)

_PLAIN_KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_INT8, _INT4 = 3, 4


@dataclass(frozen=True, slots=True)
class CachePointers:
    """Where the keys and values of all layers stand, and the rotation that belongs to each position.

    keys, values:   pointers to each layer's [rows, kv_heads, capacity, head_dim], or to the codes of an Int8Cache
    coding:         pointers to the rest of it: the scales of keys and of values, and recent keys
    capacity:       tokens
    cosines, sines: [capacity, head_dim / 2] float32
    """

    keys: "ctypes.Array[c_void_p]"
    values: "ctypes.Array[c_void_p]"
    coding: tuple["ctypes.Array[c_void_p]", ...] | None
    capacity: int
    cosines: Tensor
    sines: Tensor


@dataclass(frozen=True, slots=True)
class ComputeOptions:
    """The dtype to compute in, and the one to keep keys and values in: the same, or int8.

    float_activations: products with quantised weights take float32 inputs, instead of 8-bit codes
    """

    dtype: torch.dtype
    kv_dtype: torch.dtype
    float_activations: bool = False

    @property
    def is_narrow(self) -> bool:
        """Whether products may take bfloat16 or 8-bit inputs, where the machine multiplies these."""
        return self.dtype is torch.bfloat16 and not self.float_activations


@dataclass(slots=True)
class TokenBatch:
    """Tokens of a call, one after another: those of one cache row stand together, in the order of their positions."""

    tokens: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    slots: list[int] = field(default_factory=list)  # the cache row of each
    outputs: list[int] = field(default_factory=list)  # those whose logits are wanted


@dataclass(frozen=True, slots=True)
class StepsAhead:
    """What steps ahead came to.

    tokens: [steps][rows]; `vocab_size` where a logit was no number
    logits: [steps, rows, vocab_size] float32 that they were chosen from, where these were to be kept
    """

    tokens: list[list[int]]
    logits: Tensor | None


class NativeEngine:
    """A model's weights, packed as the kernels read them, and the threads that do."""

    def __init__(self, library: ctypes.CDLL, config: ModelConfig, computing: ComputeOptions, *, n_threads: int) -> None:
        self.library = library
        self._vocab_size = config.vocab_size
        dimensions = Dimensions(
            config.n_layers,
            config.dim,
            config.n_heads,
            config.n_kv_heads,
            config.head_dim,
            config.ffn_dim,
            config.vocab_size,
            config.norm_eps,
            computing.dtype is torch.bfloat16,
            computing.kv_dtype is torch.int8,
            computing.is_narrow,
        )
        pointer = c_void_p()
        library.gptfast_engine_new(dimensions, n_threads, pointer)
        self.pointer = pointer
        self._dim = config.dim
        self._embedding: Weight | None = None  # which the engine reads where it stands
        self._summing: _Summing | None = None

    def __del__(self) -> None:
        if hasattr(self, "pointer"):
            self.library.gptfast_engine_free(self.pointer)

    def set_linear(self, layer: int, which: int, linear: Linear) -> None:
        """Pack a layer's matrix; the head is that of the layer after the last. Raises MemoryError."""
        bias = None if linear.bias is None else _floats(linear.bias)
        stored = _stored(linear.weight, interleaved=which == GATE_UP)
        pointer = None if bias is None else bias.data_ptr()
        self.library.gptfast_set_matrix(self.pointer, layer, which, stored, pointer)

    def set_norm(self, layer: int, which: int, weight: Weight) -> None:
        """Take over a norm's weight; the last norm is that of the layer after the last."""
        values = _floats(weight)  # held until the call is over
        self.library.gptfast_set_norm(self.pointer, layer, which, values.data_ptr())

    def set_embedding(self, weight: Weight) -> None:
        """Read embeddings from this matrix, which is kept as it is."""
        self._embedding = weight
        self.library.gptfast_set_embedding(self.pointer, _stored(weight))

    def set_sum(self, total: Callable[[Tensor], Tensor], *, is_first: bool) -> None:
        """Let layers be parts of those of several ranks; `total` sums up what all have, [rows, dim] float32, in place.

        What it raises comes out of `run`. The rank that is first has the residual stream.
        """
        self._summing = _Summing(total, self._dim)
        self._sum = Sum(self._summing)  # held as long as the library has it
        self.library.gptfast_set_sum(self.pointer, self._sum, is_first)

    def run(self, batch: TokenBatch, place: CachePointers) -> Tensor:
        """Run tokens through the model, writing their keys and values; logits [outputs, vocab_size] float32.

        Raises TokenIdError for a token without an embedding, before anything is read or written.
        """
        logits = torch.empty(len(batch.outputs), self._vocab_size)
        with contextlib.nullcontext() if self._summing is None else _signals_wait():
            is_done = self.library.gptfast_run(self.pointer, call_of(batch, place, logits))
        if not is_done:
            raise self.token_error(batch.tokens)
        if self._summing is not None and self._summing.failure is not None:
            raise self._summing.failure
        return logits

    def run_ahead(
        self,
        batch: TokenBatch,
        place: CachePointers,
        choices: Sequence[Choice],
        uniforms: Sequence[Sequence[float]],
        stops: Sequence[int],
        *,
        keep_logits: bool = False,
    ) -> StepsAhead:
        """Run tokens, and go on with what each output chooses, for as many steps as there are uniforms.

        choices: of each output; uniforms: [steps][outputs] numbers in [0, 1), one for each choice
        stops:   tokens of which none is followed by another step

        Raises TokenIdError as `run` does.
        """
        n_steps, n_rows = len(uniforms), len(choices)
        logits = torch.empty(n_steps if keep_logits else 1, n_rows, self._vocab_size)
        chosen = (c_int64 * (n_steps * n_rows))()
        ahead = Ahead(
            n_steps,
            (Choice * n_rows)(*choices),
            (c_double * (n_steps * n_rows))(*(number for step in uniforms for number in step)),
            len(stops),
            (c_int64 * len(stops))(*stops),
            chosen,
            n_rows * self._vocab_size if keep_logits else 0,
        )
        n_done = self.library.gptfast_run_ahead(self.pointer, call_of(batch, place, logits), ahead)
        if n_done == NO_EMBEDDING:
            raise self.token_error(batch.tokens)
        tokens = [list(chosen[step * n_rows : (step + 1) * n_rows]) for step in range(n_done)]
        return StepsAhead(tokens, logits[:n_done] if keep_logits else None)

    def token_error(self, tokens: Sequence[int]) -> TokenIdError:
        """The error that one of these tokens has no embedding."""
        n = self.n_embeddings
        return TokenIdError(next((token for token in tokens if not 0 <= token < n), n), n)

    @property
    def n_embeddings(self) -> int:
        """Rows of the embedding."""
        return 0 if self._embedding is None else self._embedding.shape[0]

    def logsumexp_argmax(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Of each row of logits [rows, vocab_size] float32 the logarithm of the sum of exponentials, and the likeliest.

        The first, float64, is NaN where a logit is no number; the second, int64, is the lowest id among equals.
        """
        n_rows, vocab_size = logits.shape
        logits = logits.contiguous()
        log_totals, likeliest = torch.empty(n_rows, dtype=torch.float64), torch.empty(n_rows, dtype=torch.int64)
        logsumexp_argmax = Outlook(logits.data_ptr(), n_rows, vocab_size, log_totals.data_ptr(), likeliest.data_ptr())
        self.library.gptfast_find_outlook(self.pointer, logsumexp_argmax)
        return log_totals, likeliest


class _Summing:
    """What the library calls where a layer's parts are summed up; it has no way to stop, so a failure is kept."""

    def __init__(self, total: Callable[[Tensor], Tensor], dim: int) -> None:
        self._total, self._dim = total, dim
        self.failure: Exception | None = None

    def __call__(self, address: int, n_rows: int, stride: int) -> None:
        if self.failure is not None:
            return
        memory = (c_float * (n_rows * stride)).from_address(address)
        x = torch.frombuffer(memory, dtype=torch.float32).view(n_rows, stride)[:, : self._dim]
        try:
            x.copy_(self._total(x.contiguous()))
        except Exception as error:  # noqa: BLE001  # nothing may be raised into the library
            self.failure = error


@contextlib.contextmanager
def _signals_wait() -> Iterator[None]:
    """Let what a Ctrl-C raises wait for the end of the block: raised where the library calls, it would be lost."""
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


def call_of(batch: TokenBatch, place: CachePointers, logits: Tensor) -> Call:
    """What the library is told of a run; all three are kept until it is over."""
    n_rows, n_outputs = len(batch.tokens), len(batch.outputs)
    return Call(
        n_rows,
        (c_int64 * n_rows)(*batch.tokens),
        (c_int32 * n_rows)(*batch.positions),
        (c_int32 * n_rows)(*batch.slots),
        n_outputs,
        (c_int32 * n_outputs)(*batch.outputs),
        logits.data_ptr(),
        place.keys,
        place.values,
        *(place.coding or (None, None, None)),
        place.capacity,
        place.cosines.data_ptr(),
        place.sines.data_ptr(),
    )


def pointers(tensors: Sequence[Tensor]) -> "ctypes.Array[c_void_p]":
    """The addresses of tensors, which the caller keeps alive."""
    return (c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))


def _floats(weight: Weight) -> Tensor:
    return schemes[weight.scheme].dense(weight, torch.float32).contiguous()


def _stored(weight: Weight, *, interleaved: bool = False) -> Stored:
    n_rows, n_columns = weight.shape
    parts = weight.parts
    assert all(part.is_contiguous() for part in parts.values())
    match weight.scheme:
        case "plain":
            (values,) = parts.values()
            kind, scales, zeros, group = _PLAIN_KINDS[values.dtype], None, None, 0
        case "int8":
            values, kind, scales, zeros, group = parts["codes"], _INT8, parts["scales"].data_ptr(), None, 0
        case "int4":
            values, kind, scales = parts["codes"], _INT4, parts["scales"].data_ptr()
            zeros, group = parts["zeros"].data_ptr(), 2 * values.shape[-1]
        case other:
            raise AssertionError(other)
    return Stored(kind, values.data_ptr(), scales, zeros, n_rows, n_columns, group, interleaved)
