"""A SHA-256 covers every byte, in files and tensors that are longer than the pieces in which they are read."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from gptfast_cli.core.checkpoints.manifest import sha256_of
from gptfast_cli.core.checkpoints.shard import open_shard
from gptfast_cli.core.checkpoints.writer import PlannedTensor, tensor_sha256, write_shard

PIECE = 1 << 24  # bytes that are read at once
N_BYTES = 2 * PIECE + 13
CONTENT = np.arange(N_BYTES // 4 + 1, dtype=np.uint32).tobytes()[:N_BYTES]  # no two pieces are equal
STRETCHES = ((0, None), (5, None), (PIECE, None), (0, PIECE), (3, 2 * PIECE), (3, N_BYTES - 1), (N_BYTES, None))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("large") / "file"
    path.write_bytes(CONTENT)
    return path


@pytest.mark.parametrize(("start", "end"), STRETCHES)
def test_the_hash_of_a_file_is_that_of_all_its_bytes(file: Path, start: int, end: int | None) -> None:
    assert sha256_of(file, start, end) == hashlib.sha256(CONTENT[start:end]).hexdigest()


def transposed() -> Tensor:
    return torch.arange(3 * 3_000_001, dtype=torch.int32).reshape(3, -1).t()  # 36 MB


@pytest.mark.parametrize(
    "tensor",
    [torch.frombuffer(bytearray(CONTENT), dtype=torch.uint8), transposed(), torch.arange(PIECE // 2).bfloat16()],
    ids=["pieces and a rest", "transposed", "whole pieces"],
)
def test_the_hash_of_a_tensor_is_that_of_all_its_bytes_also_while_it_is_written(tmp_path: Path, tensor: Tensor) -> None:
    expected = hashlib.sha256(tensor.contiguous().view(torch.uint8).numpy()).hexdigest()
    small = torch.ones(3)
    planned = {
        "large": PlannedTensor(tensor.dtype, tuple(tensor.shape)),
        "small": PlannedTensor(small.dtype, tuple(small.shape)),
    }
    written = dict(write_shard(tmp_path / "x.safetensors", planned, iter([("large", tensor), ("small", small)])))
    assert tensor_sha256(tensor) == written["large"] == expected
    assert torch.equal(open_shard(tmp_path / "x.safetensors").tensor("large"), tensor)
