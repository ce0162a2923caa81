"""Writing a safetensors file tensor by tensor: the header follows from the shapes, so nothing waits in memory."""

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from gptfast_cli.core.checkpoints.shard import CODES, LENGTH_BYTES

_ALIGNMENT = 64  # the first tensor starts on a cache line
_CHUNK_BYTES = 1 << 24


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """A tensor that is to be written."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def code(self) -> str:
        """The dtype as safetensors spells it."""
        return CODES[self.dtype]

    @property
    def n_bytes(self) -> int:
        """Bytes of the tensor."""
        return math.prod(self.shape) * self.dtype.itemsize


def write_shard(
    path: Path, planned: Mapping[str, PlannedTensor], tensors: Iterator[tuple[str, Tensor]]
) -> Iterator[tuple[str, str]]:
    """Write a file of the planned tensors, which come by name in the planned order, and sync it to the disk.

    Yields the name of each tensor when it is written, and the SHA-256 of its bytes.
    """
    with path.open("wb") as file:
        file.write(header(planned))
        for name, plan in planned.items():
            given, tensor = next(tensors)  # zip would keep the one before while the next is made
            assert (given, tensor.dtype, tuple(tensor.shape)) == (name, plan.dtype, plan.shape), given
            sha256 = _write_bytes(file, tensor)
            del tensor
            yield name, sha256
        file.flush()
        os.fsync(file.fileno())


def header(planned: Mapping[str, PlannedTensor]) -> bytes:
    """The length and the header of a file of these tensors, one straight after the other."""
    entries: dict[str, object] = {}
    end = 0
    for name, plan in planned.items():
        start, end = end, end + plan.n_bytes
        entries[name] = {"dtype": plan.code, "shape": plan.shape, "data_offsets": [start, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(LENGTH_BYTES + len(text)) % _ALIGNMENT)
    return len(text).to_bytes(LENGTH_BYTES, "little") + text


def tensor_sha256(tensor: Tensor) -> str:
    """The SHA-256 of a tensor's bytes as they stand in a file."""
    digest = hashlib.sha256()
    for chunk in _chunks(tensor):
        digest.update(chunk)
    return digest.hexdigest()


def _write_bytes(file: BinaryIO, tensor: Tensor) -> str:
    digest = hashlib.sha256()
    for chunk in _chunks(tensor):
        file.write(chunk)
        digest.update(chunk)
    return digest.hexdigest()


def _chunks(tensor: Tensor) -> Iterator[memoryview]:
    """A tensor's bytes without a copy of them."""
    content = tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
    for start in range(0, len(content), _CHUNK_BYTES):
        yield content[start : start + _CHUNK_BYTES]
