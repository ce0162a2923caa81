"""A rank reads its own part of the files and, but for the edges of pages, nothing else."""

import ctypes
import mmap
import os
from pathlib import Path

import pytest

from gptfast_cli.core.checkpoints.reader import open_checkpoint
from gptfast_cli.core.models.sharding import ModelShard
from gptfast_cli.core.models.weights import weight_shapes
from gptfast_cli.core.schemes import Block
from model_files import converted, saved, settings_in

WIDE = {
    "hidden_size": 256,
    "intermediate_size": 16384,
    "num_attention_heads": 64,
    "num_key_value_heads": 64,
    "head_dim": 64,
    "num_hidden_layers": 1,
    "vocab_size": 512,
}


def forget(file: Path) -> None:
    """Have the system's cache hold nothing of a file."""
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def cached_bytes(file: Path) -> int:
    """Bytes of a file that the system's cache holds: what was read since it was forgotten."""
    with file.open("r+b") as opened, mmap.mmap(opened.fileno(), 0) as mapped:
        n_pages = -(-len(mapped) // mmap.PAGESIZE)
        held = (ctypes.c_ubyte * n_pages)()
        address = ctypes.addressof(ctypes.c_char.from_buffer(mapped))
        assert ctypes.CDLL(None).mincore(ctypes.c_void_p(address), ctypes.c_size_t(len(mapped)), held) == 0
        return sum(page & 1 for page in held) * mmap.PAGESIZE


@pytest.mark.parametrize("layout", ["huggingface", "ours"])
def test_a_rank_reads_its_own_part_of_the_files(tmp_path: Path, layout: str) -> None:
    folder = saved(tmp_path / "model", **WIDE)
    if layout == "ours":
        folder = converted(folder, settings_in(tmp_path)).path
    (file,) = folder.glob("*.safetensors")
    checkpoint = open_checkpoint(folder)
    forget(file)
    if cached_bytes(file) > 100_000:
        pytest.skip("the system keeps this file in memory, as it does one of a tmpfs")
    share = ModelShard(checkpoint.config, 1, 4)
    own = 0
    for name in weight_shapes(checkpoint.config):
        weight = checkpoint.weight(name, share.block(name) or Block())
        own += weight.n_bytes
        for part in weight.parts.values():
            part.sum()
    assert own == pytest.approx(checkpoint.n_bytes / 4, rel=0.01)
    assert own <= cached_bytes(file) <= 1.15 * own
