"""The ctypes mirror of the native library: structures, kinds and functions, as `native/abi.h` declares them.

`open_library` compares the size of every structure and the value of every constant with those that the library was
compiled with.
"""

import ctypes
from collections.abc import Mapping
from ctypes import (
    CFUNCTYPE,
    POINTER,
    Structure,
    c_char_p,
    c_double,
    c_float,
    c_int,
    c_int32,
    c_int64,
    c_size_t,
    c_uint64,
    c_void_p,
)
from enum import IntEnum
from pathlib import Path
from typing import Final

from gptfast_cli.core.backends.base import KEY_BLOCK, KEY_TILE, QUAD
from gptfast_cli.core.errors import OutOfMemoryError

MAX_HEAD_DIM: Final = 256


class Status(IntEnum):
    """Returned in place of a count: a token without a row in the embedding, or a lack of memory or threads."""

    NO_EMBEDDING = -1
    NO_MEMORY = -2
    NO_THREADS = -3


class WeightKind(IntEnum):
    """How the elements of a WeightView are stored."""

    FLOAT32 = 0
    BFLOAT16 = 1
    FLOAT16 = 2
    INT8 = 3
    INT4 = 4
    GROUPED = 5


class ScaleForm(IntEnum):
    """How the scales and offsets of a grouped weight are stored."""

    NONE = 0
    HALF = 1
    BF16 = 2
    FLOAT = 3
    SIGNED = 4
    UNSIGNED = 5
    E4M3 = 6
    E8M0 = 7


class CodeValues(IntEnum):
    """What the codes of a grouped weight stand for."""

    CONSECUTIVE = 0
    INTEGERS = 1
    FLOATS = 2
    E4M3 = 3


class MatrixRole(IntEnum):
    """The matrices of a layer; the head is number 0 of the layer after the last."""

    QKV = 0
    OUTPUT = 1
    GATE_UP = 2
    DOWN = 3


class NormRole(IntEnum):
    """The norms of a layer; the last norm is number 0 of the layer after the last."""

    ATTENTION_NORM = 0
    Q_NORM = 1
    K_NORM = 2
    ATTENTION_OUTPUT_NORM = 3
    FFN_NORM = 4
    FFN_OUTPUT_NORM = 5


class Activation(IntEnum):
    """Those of config.Activation, by the same names."""

    SILU = 0
    GELU_TANH = 1


class QKNorm(IntEnum):
    """Those of config.QKNorm, by the same names, and none."""

    NONE = 0
    HEAD = 1
    WIDTH = 2


class LayerShape(Structure):
    """A layer of the rank's part of a model; a window or a softcap of 0 is none."""

    _fields_ = (
        ("n_heads", c_int),
        ("n_kv_heads", c_int),
        ("head_dim", c_int),
        ("ffn_dim", c_int),
        ("rotation", c_int),
        ("rotary_dim", c_int),
        ("window", c_int),
        ("score_scale", c_float),
        ("score_softcap", c_float),
        ("residual_scale", c_float),
        ("query_beta", c_float),
        ("query_context", c_int),
        ("qk_norm", c_int),
        ("activation", c_int),
    )


class Dimensions(Structure):
    """A model's sizes; `cache_is_bf16`, `cache_is_int8` and `narrow` are flags."""

    _fields_ = (
        ("n_layers", c_int),
        ("dim", c_int),
        ("vocab_size", c_int),
        ("layers", POINTER(LayerShape)),
        ("norm_eps", c_float),
        ("embedding_scale", c_float),
        ("logit_scale", c_float),
        ("logit_softcap", c_float),
        ("cache_is_bf16", c_int),
        ("cache_is_int8", c_int),
        ("narrow", c_int),
    )


class Groups(Structure):
    """The parts of a weight in the grouped scheme."""

    _fields_ = (
        ("bits", c_int),
        ("size", c_int),
        ("n_groups", c_int),
        ("per_super", c_int),
        ("n_super", c_int),
        ("values", c_int),
        ("first", c_float),
        ("multiplier", c_float),
        ("scale_form", c_int),
        ("offset_form", c_int),
        ("scales", c_void_p),
        ("offsets", c_void_p),
        ("zeros", c_void_p),
        ("super_scales", c_void_p),
        ("super_offsets", c_void_p),
        ("floats", c_void_p),
        ("integers", c_void_p),
    )


class WeightView(Structure):
    """A matrix as its scheme stores it: pointers to its parts."""

    _fields_ = (
        ("kind", c_int),
        ("values", c_void_p),
        ("scales", c_void_p),
        ("zeros", c_void_p),
        ("n_rows", c_int),
        ("n_columns", c_int),
        ("group", c_int),
        ("interleaved", c_int),
        ("groups", POINTER(Groups)),
        ("order", c_void_p),
    )


class SamplingParams(Structure):
    """How a token is sampled from logits, and the tokens seen, if their repetition is penalized."""

    _fields_ = (
        ("temperature", c_float),
        ("top_k", c_int),
        ("top_p", c_double),
        ("min_p", c_double),
        ("repetition_penalty", c_float),
        ("n_seen", c_int),
        ("seen", c_void_p),
    )


class LayerKV(Structure):
    """Where the keys and values of a layer lie."""

    _fields_ = (
        ("blocks", POINTER(c_void_p)),
        ("layer_at", c_size_t),
        ("head_bytes", c_size_t),
        ("values_at", c_size_t),
        ("key_scales_at", c_size_t),
        ("value_scales_at", c_size_t),
        ("recent_keys", c_void_p),
    )


class Rotation(Structure):
    """Cosines and sines of a kind of rotary position embedding."""

    _fields_ = (("cosines", c_void_p), ("sines", c_void_p))


class Call(Structure):
    """A batch of tokens and the KV cache."""

    _fields_ = (
        ("n_rows", c_int),
        ("tokens", POINTER(c_int64)),
        ("positions", POINTER(c_int32)),
        ("slots", POINTER(c_int32)),
        ("n_outputs", c_int),
        ("outputs", POINTER(c_int32)),
        ("logits", c_void_p),
        ("kv", POINTER(LayerKV)),
        ("n_blocks", c_int),
        ("rotations", POINTER(Rotation)),
    )


class Ahead(Structure):
    """Decode steps in one call, and how their tokens are sampled."""

    _fields_ = (
        ("n_steps", c_int),
        ("params", POINTER(SamplingParams)),
        ("uniforms", POINTER(c_double)),
        ("n_stops", c_int),
        ("stops", POINTER(c_int64)),
        ("chosen", POINTER(c_int64)),
        ("logits_stride", c_size_t),
    )


class Row(Structure):
    """A row of a speculative batch."""

    _fields_ = (
        ("slot", c_int32),
        ("n_left", c_int32),
        ("n_text", c_int32),
        ("n_draft", c_int32),
        ("rest", POINTER(c_int64)),
        ("seed", c_uint64),
        ("stream", c_uint64),
        ("params", SamplingParams),
    )


class Rounds(Structure):
    """Rounds of speculative decoding: inputs, then outputs."""

    _fields_ = (
        ("n_rounds", c_int),
        ("draft_length", c_int),
        ("n_rows", c_int),
        ("max_uncertainty", c_double),
        ("rows", POINTER(Row)),
        ("target", POINTER(Call)),
        ("draft", POINTER(Call)),
        ("n_stops", c_int),
        ("stops", POINTER(c_int64)),
        ("tokens", POINTER(c_int64)),
        ("n_drafted", POINTER(c_int32)),
        ("n_accepted", POINTER(c_int32)),
        ("overlaps", POINTER(c_double)),
        ("uncertainties", POINTER(c_double)),
        ("n_held", POINTER(c_int32)),
        ("seconds", POINTER(c_double)),
    )


class LogsumexpArgmax(Structure):
    """log(sum(exp(row))) and argmax of rows of logits."""

    _fields_ = (
        ("logits", c_void_p),
        ("n_rows", c_int),
        ("vocab_size", c_int),
        ("log_totals", c_void_p),
        ("likeliest", c_void_p),
    )


Sum = CFUNCTYPE(None, c_void_p, c_int, c_int, c_int)
"""All-reduce in place: the address of x, its rows and columns, and the floats from one row to the next."""

STRUCTURES: Final = (
    LayerShape,
    Dimensions,
    Groups,
    WeightView,
    SamplingParams,
    Rotation,
    LayerKV,
    Call,
    Ahead,
    Row,
    Rounds,
    LogsumexpArgmax,
)
_ENUMS: Final = (Status, WeightKind, ScaleForm, CodeValues, MatrixRole, NormRole, Activation, QKNorm)
_SIZES: Final = {"KEY_BLOCK": KEY_BLOCK, "KEY_TILE": KEY_TILE, "QUAD": QUAD, "MAX_HEAD_DIM": MAX_HEAD_DIM}


def abi() -> dict[str, int]:
    """What Python takes the library to be: sizes of structures in bytes, and values of constants, by C++ name."""
    members = {f"{kind.__name__}::{member.name}": int(member) for kind in _ENUMS for member in kind}
    return {each.__name__: ctypes.sizeof(each) for each in STRUCTURES} | members | _SIZES


def open_library(path: Path) -> ctypes.CDLL:
    """Load the compiled library, compare its layout with `abi`, and declare its functions.

    Functions that return an int raise MemoryError, or OutOfMemoryError where the system starts no more threads.
    """
    library = ctypes.CDLL(str(path))
    check_abi(library, abi())
    library.gptfast_engine_free.argtypes = (c_void_p,)
    library.gptfast_engine_free.restype = None
    library.gptfast_set_embedding.argtypes = (c_void_p, POINTER(WeightView))
    library.gptfast_set_embedding.restype = None
    library.gptfast_set_sum.argtypes = (c_void_p, Sum, c_int, c_int)
    library.gptfast_set_sum.restype = None
    library.gptfast_engine_new.argtypes = (POINTER(Dimensions), c_int, POINTER(c_void_p))
    library.gptfast_set_matrix.argtypes = (c_void_p, c_int, c_int, POINTER(WeightView), c_int, c_void_p)
    library.gptfast_set_norm.argtypes = (c_void_p, c_int, c_int, c_void_p)
    library.gptfast_run.argtypes = (c_void_p, POINTER(Call))
    library.gptfast_run.restype = c_int
    library.gptfast_run_ahead.argtypes = (c_void_p, POINTER(Call), POINTER(Ahead))
    library.gptfast_run_rounds.argtypes = (c_void_p, c_void_p, POINTER(Rounds))
    library.gptfast_logsumexp_argmax.argtypes = (c_void_p, POINTER(LogsumexpArgmax))
    library.gptfast_sample.argtypes = (c_void_p, c_int, POINTER(SamplingParams), c_double)
    for function in (
        library.gptfast_engine_new,
        library.gptfast_set_matrix,
        library.gptfast_set_norm,
        library.gptfast_run,
        library.gptfast_run_ahead,
        library.gptfast_run_rounds,
        library.gptfast_logsumexp_argmax,
        library.gptfast_sample,
    ):
        function.restype = c_int
        function.errcheck = _raise_failure  # type: ignore[assignment]  # typeshed knows no plain int here
    return library


def check_abi(library: ctypes.CDLL, expected: Mapping[str, int]) -> None:
    """Raise AssertionError if the library was compiled with another size or value than expected."""
    library.gptfast_abi.argtypes = (c_char_p,)
    library.gptfast_abi.restype = c_int
    for name, value in expected.items():
        compiled = library.gptfast_abi(name.encode())
        assert compiled == value, f"{name} is {compiled} in C++ and {value} in Python"


def _raise_failure(result: int, *_: object) -> int:
    if result == Status.NO_MEMORY:
        raise MemoryError("The CPU engine could not get the memory that it needs.")
    if result == Status.NO_THREADS:
        raise OutOfMemoryError("The system starts no more threads for the CPU engine.", "Take fewer: --threads 1")
    return result
