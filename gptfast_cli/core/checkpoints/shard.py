"""A safetensors file: strict header checks, memory-mapped tensors.

Format (https://huggingface.co/docs/safetensors): 8 bytes little-endian length of the header, the header as a JSON
object {tensor name: {dtype, shape, data_offsets}}, then the tensors' bytes. The safetensors package accepts duplicate
names; here that, and every gap, overlap or missing byte, is a CorruptError.

Mappings are shared and read-only, so files may be larger than memory. Writing to a mapped tensor, or truncating a file
in use, kills the process (SIGSEGV, SIGBUS): this program replaces files by renaming.
"""

import ctypes
import functools
import math
import mmap
import os
import weakref
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gptfast_cli.core.checkpoints.downloads import FETCH_AGAIN
from gptfast_cli.core.errors import CorruptError
from gptfast_cli.core.fields import Fields, parse_fields

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U32": torch.uint32,
    "U8": torch.uint8,
}
CODES = {dtype: code for code, dtype in DTYPES.items()}
LENGTH_BYTES = 8

_MAP_FAILED = ctypes.c_void_p(-1).value

_MAX_HEADER_BYTES = 100_000_000  # the format's own limit


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor in a file: dtype code, shape, byte range `start` to `end`."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Shard:
    """A weight file without an open handle: each tensor has its own mapping, which lives as long as the tensor."""

    path: Path
    tensors: dict[str, TensorInfo]

    def tensor(self, name: str) -> Tensor:
        """A read-only, memory-mapped tensor. Raises CorruptError if the file was truncated since it was opened."""
        stored = self.tensors[name]
        if stored.start == stored.end:
            return torch.empty(stored.shape, dtype=DTYPES[stored.dtype])
        mapped = _mapped(self.path, stored.start, stored.end)
        if stored.start % DTYPES[stored.dtype].itemsize:
            mapped = mapped.clone()  # other writers may not align tensors
        return mapped.view(DTYPES[stored.dtype]).view(stored.shape)


def _mapped(path: Path, start: int, end: int) -> Tensor:
    """Bytes `start` to `end` of a file, uint8.

    Python's mmap would keep a file descriptor per tensor, beyond the limit of a process; PyTorch's maps writable.
    """
    first = start // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
    n_bytes = end - first
    libc = _libc()
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size < end:
            raise CorruptError(f"{path.name}: was truncated since it was opened", FETCH_AGAIN)
        address = libc.mmap(None, n_bytes, mmap.PROT_READ, mmap.MAP_SHARED, file.fileno(), first)
    if address == _MAP_FAILED:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(path))
    memory = (ctypes.c_uint8 * n_bytes).from_address(address)
    weakref.finalize(memory, libc.munmap, address, n_bytes).atexit = False
    return torch.frombuffer(memory, dtype=torch.uint8)[start - first :]


@functools.cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = (*(ctypes.c_void_p, ctypes.c_size_t), *(ctypes.c_int,) * 3, ctypes.c_int64)
    libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    return libc


def advise_random_access(tensor: Tensor) -> Tensor:
    """Disable read-ahead for a mapped tensor of which parts are read (madvise, on Unix); returns it."""
    if hasattr(mmap, "MADV_RANDOM"):
        begin = tensor.data_ptr() // mmap.PAGESIZE * mmap.PAGESIZE
        n_bytes = tensor.data_ptr() + tensor.nbytes - begin
        _libc().madvise(ctypes.c_void_p(begin), ctypes.c_size_t(n_bytes), mmap.MADV_RANDOM)
    return tensor


def open_shard(path: Path) -> Shard:
    """Read and check a file's header. Raises CorruptError with file and tensor."""
    if not path.is_file():  # opening a pipe would block
        raise CorruptError(f"{path.name}: is not a file", FETCH_AGAIN)
    n_bytes = path.stat().st_size
    with path.open("rb") as file:
        n_header = int.from_bytes(file.read(LENGTH_BYTES), "little")
        if not 2 <= n_header <= min(_MAX_HEADER_BYTES, n_bytes - LENGTH_BYTES):
            raise CorruptError(
                f"{path.name}: not a safetensors file: its header cannot be {n_header} bytes", FETCH_AGAIN
            )
        header = parse_fields(file.read(n_header), path.name)
    payload = LENGTH_BYTES + n_header
    tensors = {name: _stored(header.section(name), payload) for name in header if name != "__metadata__"}
    _check_layout(path.name, tensors, payload=payload, n_bytes=n_bytes)
    return Shard(path, tensors)


def _stored(fields: Fields, payload: int) -> TensorInfo:
    dtype, shape, offsets = fields.text("dtype"), fields.shape("shape"), fields.offsets("data_offsets")
    if dtype not in DTYPES:
        raise fields.corrupt("dtype", f"{dtype} is not one of {', '.join(DTYPES)}")
    if len(offsets) != 2 or offsets[1] - offsets[0] != math.prod(shape) * DTYPES[dtype].itemsize:
        raise fields.corrupt("data_offsets", f"{list(offsets)} do not hold {list(shape)} of {dtype}")
    return TensorInfo(dtype, shape, payload + offsets[0], payload + offsets[1])


def _check_layout(file: str, tensors: dict[str, TensorInfo], *, payload: int, n_bytes: int) -> None:
    end = payload
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)):
        if tensor.start != end:
            what = "overlaps the one before it" if tensor.start < end else "leaves a gap before it"
            raise CorruptError(f"{file}: {name}: {what}", FETCH_AGAIN)
        end = tensor.end
        if end > n_bytes:
            raise CorruptError(f"{file}: {name}: {end - n_bytes} bytes are missing at the end of the file", FETCH_AGAIN)
    if end < n_bytes:
        raise CorruptError(f"{file}: {n_bytes - end} bytes follow the last tensor", FETCH_AGAIN)
