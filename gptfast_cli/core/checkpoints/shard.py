"""A safetensors file, read strictly and by mmap.

Format (https://huggingface.co/docs/safetensors): 8 bytes little-endian length of the header, the header as a JSON
object {tensor name: {dtype, shape, data_offsets}}, then the tensors' bytes. The safetensors package accepts a header
that names a tensor twice; here that, and every gap, overlap or missing byte, is a CorruptError.

Files are mapped shared and read-only, so a file counts against no limit of memory and may be larger than all there is.
Two things follow: writing to a tensor of a file ends the process, as does a file that is made shorter while a tensor of
it is in use (SIGSEGV, SIGBUS). This program replaces files by renaming, and never shortens one.
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
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
}
CODES = {dtype: code for code, dtype in DTYPES.items()}
LENGTH_BYTES = 8

_MAP_FAILED = ctypes.c_void_p(-1).value

_MAX_HEADER_BYTES = 100_000_000  # the format's own limit


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor's place in its file: dtype code, shape, byte range `start` to `end`."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Shard:
    """A safetensors file, open without a handle: each tensor has its own mapping, which lives as long as the tensor."""

    path: Path
    tensors: dict[str, StoredTensor]

    def tensor(self, name: str) -> Tensor:
        """A tensor of the file, mapped, to be read only; its bytes are read when they are touched.

        Raises CorruptError if the file has become shorter since it was opened.
        """
        stored = self.tensors[name]
        if stored.start == stored.end:
            return torch.empty(stored.shape, dtype=DTYPES[stored.dtype])
        mapped = _mapped(self.path, stored.start, stored.end)
        if stored.start % DTYPES[stored.dtype].itemsize:
            mapped = mapped.clone()  # a file of another writer may not be aligned
        return mapped.view(DTYPES[stored.dtype]).view(stored.shape)


def _mapped(path: Path, start: int, end: int) -> Tensor:
    """Bytes `start` to `end` of a file, uint8.

    Python's mmap would keep a file descriptor for each tensor, more than a process may have; PyTorch's can write.
    """
    first = start // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
    n_bytes = end - first
    libc = _libc()
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size < end:
            raise CorruptError(f"{path.name}: has become shorter since it was opened", FETCH_AGAIN)
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


def touched_in_part(tensor: Tensor) -> Tensor:
    """The same without read-ahead around touched pages (madvise, on Unix)."""
    if hasattr(mmap, "MADV_RANDOM"):
        begin = tensor.data_ptr() // mmap.PAGESIZE * mmap.PAGESIZE
        n_bytes = tensor.data_ptr() + tensor.nbytes - begin
        _libc().madvise(ctypes.c_void_p(begin), ctypes.c_size_t(n_bytes), mmap.MADV_RANDOM)
    return tensor


def open_shard(path: Path) -> Shard:
    """Read a file's header and check it against the file's size; raises CorruptError with file and tensor."""
    if not path.is_file():  # to open a pipe would wait for its writer
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


def _stored(fields: Fields, payload: int) -> StoredTensor:
    dtype, shape, offsets = fields.text("dtype"), fields.shape("shape"), fields.offsets("data_offsets")
    if dtype not in DTYPES:
        raise fields.corrupt("dtype", f"{dtype} is not one of {', '.join(DTYPES)}")
    if len(offsets) != 2 or offsets[1] - offsets[0] != math.prod(shape) * DTYPES[dtype].itemsize:
        raise fields.corrupt("data_offsets", f"{list(offsets)} do not hold {list(shape)} of {dtype}")
    return StoredTensor(dtype, shape, payload + offsets[0], payload + offsets[1])


def _check_layout(file: str, tensors: dict[str, StoredTensor], *, payload: int, n_bytes: int) -> None:
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
