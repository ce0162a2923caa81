"""The native library in Python's terms: its structures and functions, as `call.h` and `pack.h` declare them."""

import ctypes
from ctypes import (
    CFUNCTYPE,
    POINTER,
    Structure,
    c_double,
    c_float,
    c_int,
    c_int32,
    c_int64,
    c_size_t,
    c_uint64,
    c_void_p,
)
from pathlib import Path
from typing import Final

from gptfast_cli.core.errors import OutOfMemoryError

NO_EMBEDDING: Final = -1
"""In place of how many steps or rounds there were: a token has no row in the embedding."""


class Dimensions(Structure):
    """A model's sizes; `cache_is_bf16`, `cache_is_int8` and `narrow` are flags."""

    _fields_ = (
        ("n_layers", c_int),
        ("dim", c_int),
        ("n_heads", c_int),
        ("n_kv_heads", c_int),
        ("head_dim", c_int),
        ("ffn_dim", c_int),
        ("vocab_size", c_int),
        ("norm_eps", c_float),
        ("cache_is_bf16", c_int),
        ("cache_is_int8", c_int),
        ("narrow", c_int),
    )


class Stored(Structure):
    """A matrix as a checkpoint stores it: pointers to its parts."""

    _fields_ = (
        ("kind", c_int),
        ("values", c_void_p),
        ("scales", c_void_p),
        ("zeros", c_void_p),
        ("n_rows", c_int),
        ("n_columns", c_int),
        ("group", c_int),
        ("interleaved", c_int),
    )


class Choice(Structure):
    """How a token is chosen from logits."""

    _fields_ = (("temperature", c_float), ("top_k", c_int), ("top_p", c_double), ("min_p", c_double))


class Call(Structure):
    """What one run is about."""

    _fields_ = (
        ("n_rows", c_int),
        ("tokens", POINTER(c_int64)),
        ("positions", POINTER(c_int32)),
        ("slots", POINTER(c_int32)),
        ("n_outputs", c_int),
        ("outputs", POINTER(c_int32)),
        ("logits", c_void_p),
        ("keys", POINTER(c_void_p)),
        ("values", POINTER(c_void_p)),
        ("key_scales", POINTER(c_void_p)),
        ("value_scales", POINTER(c_void_p)),
        ("recent_keys", POINTER(c_void_p)),
        ("capacity", c_int),
        ("cosines", c_void_p),
        ("sines", c_void_p),
    )


class Ahead(Structure):
    """Steps that follow one another, and how their tokens are chosen."""

    _fields_ = (
        ("n_steps", c_int),
        ("choices", POINTER(Choice)),
        ("uniforms", POINTER(c_double)),
        ("n_stops", c_int),
        ("stops", POINTER(c_int64)),
        ("chosen", POINTER(c_int64)),
        ("logits_stride", c_size_t),
    )


class Row(Structure):
    """A row of a batch that rounds go on with."""

    _fields_ = (
        ("slot", c_int32),
        ("n_left", c_int32),
        ("n_text", c_int32),
        ("n_draft", c_int32),
        ("rest", POINTER(c_int64)),
        ("seed", c_uint64),
        ("stream", c_uint64),
        ("choice", Choice),
    )


class Rounds(Structure):
    """Rounds of speculation, and where what comes of them is put."""

    _fields_ = (
        ("n_rounds", c_int),
        ("depth", c_int),
        ("n_rows", c_int),
        ("most_doubt", c_double),
        ("rows", POINTER(Row)),
        ("target", POINTER(Call)),
        ("draft", POINTER(Call)),
        ("n_stops", c_int),
        ("stops", POINTER(c_int64)),
        ("tokens", POINTER(c_int64)),
        ("n_drafted", POINTER(c_int32)),
        ("n_accepted", POINTER(c_int32)),
        ("overlaps", POINTER(c_double)),
        ("doubts", POINTER(c_double)),
        ("n_held", POINTER(c_int32)),
        ("seconds", POINTER(c_double)),
    )


class Outlook(Structure):
    """What rows of logits say of the token to come."""

    _fields_ = (
        ("logits", c_void_p),
        ("n_rows", c_int),
        ("vocab_size", c_int),
        ("log_totals", c_void_p),
        ("likeliest", c_void_p),
    )


Sum = CFUNCTYPE(None, c_void_p, c_int, c_int)
"""Sums up what all ranks have: the address of x, its rows, and floats from one row to the next."""


_NO_MEMORY, _NO_THREADS = -2, -3


def open_library(path: Path) -> ctypes.CDLL:
    """Load the compiled library and declare its functions.

    Those that return a number raise MemoryError, or OutOfMemoryError where the system starts no more threads.
    """
    library = ctypes.CDLL(str(path))
    library.gptfast_engine_free.argtypes = (c_void_p,)
    library.gptfast_engine_free.restype = None
    library.gptfast_set_embedding.argtypes = (c_void_p, POINTER(Stored))
    library.gptfast_set_embedding.restype = None
    library.gptfast_set_sum.argtypes = (c_void_p, Sum, c_int)
    library.gptfast_set_sum.restype = None
    library.gptfast_engine_new.argtypes = (POINTER(Dimensions), c_int, POINTER(c_void_p))
    library.gptfast_set_matrix.argtypes = (c_void_p, c_int, c_int, POINTER(Stored), c_void_p)
    library.gptfast_set_norm.argtypes = (c_void_p, c_int, c_int, c_void_p)
    library.gptfast_run.argtypes = (c_void_p, POINTER(Call))
    library.gptfast_run.restype = c_int
    library.gptfast_run_ahead.argtypes = (c_void_p, POINTER(Call), POINTER(Ahead))
    library.gptfast_run_rounds.argtypes = (c_void_p, c_void_p, POINTER(Rounds))
    library.gptfast_find_outlook.argtypes = (c_void_p, POINTER(Outlook))
    library.gptfast_choose.argtypes = (c_void_p, c_int, POINTER(Choice), c_double)
    for function in (
        library.gptfast_engine_new,
        library.gptfast_set_matrix,
        library.gptfast_set_norm,
        library.gptfast_run,
        library.gptfast_run_ahead,
        library.gptfast_run_rounds,
        library.gptfast_find_outlook,
        library.gptfast_choose,
    ):
        function.restype = c_int
        function.errcheck = _raise_failure  # type: ignore[assignment]  # typeshed knows no plain int here
    return library


def _raise_failure(result: int, *_: object) -> int:
    if result == _NO_MEMORY:
        raise MemoryError("The CPU engine could not get the memory that it needs.")
    if result == _NO_THREADS:
        raise OutOfMemoryError("The system starts no more threads for the CPU engine.", "Take fewer: --threads 1")
    return result
