"""The writer cuts a model into shards that the safetensors package reads too, in any dtype and of any size."""

import hashlib
import weakref
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from gptfast_cli.core.checkpoints.manifest import Manifest, Provenance
from gptfast_cli.core.checkpoints.reader import open_manifest_checkpoint
from gptfast_cli.core.checkpoints.resumable import write_checkpoint
from gptfast_cli.core.checkpoints.shard import DTYPES, open_shard
from gptfast_cli.core.checkpoints.writer import (
    Contents,
    PlannedTensor,
    PlannedWeight,
    TokenizerFiles,
    header,
    write_shard,
)
from gptfast_cli.core.errors import CorruptError, UsageError
from gptfast_cli.core.families import families
from gptfast_cli.core.models.weights import weight_shapes
from gptfast_cli.core.schemes import Weight, quantized
from gptfast_cli.core.schemes.plain import plain
from llama_oracle import random_llama
from model_files import drained


def contents(tokenizer: TokenizerFiles | None = None, **changes: int) -> Contents:
    """A model whose matrices have two parts of unlike dtype and shape."""
    config = families["llama"].config(random_llama().config.to_dict() | changes)
    planned = {}
    for name, shape in weight_shapes(config).items():
        vector = plain(torch.empty(shape, dtype=torch.bfloat16, device="meta"))
        meta_weight = quantized("int8").meta_weight(shape, None) if len(shape) == 2 else vector
        parts = {part: PlannedTensor(tensor.dtype, tuple(tensor.shape)) for part, tensor in meta_weight.parts.items()}
        planned[name] = PlannedWeight(meta_weight.scheme, shape, parts)
    return Contents("m", config, torch.bfloat16, planned, tokenizer, Provenance("m", None, "test"))


def weight(name: str, of: Contents) -> Weight:
    """Something that differs from weight to weight."""
    planned = of.weights[name]
    value = sum(name.encode()) % 100
    parts = {part: torch.full(plan.shape, value, dtype=plan.dtype) for part, plan in planned.parts.items()}
    return Weight(planned.scheme, planned.shape, parts)


def written(folder: Path, of: Contents, *, shard_bytes: int = 10**9) -> Manifest:
    return drained(
        write_checkpoint(folder, of, lambda name: weight(name, of), identity="x", force=False, shard_bytes=shard_bytes)
    )[1]


def test_every_part_of_every_weight_comes_back(tmp_path: Path) -> None:
    written(tmp_path / "m", contents())
    checkpoint = open_manifest_checkpoint(tmp_path / "m")
    assert (checkpoint.scheme, checkpoint.dtype) == ("int8", torch.bfloat16)
    for name in contents().weights:
        expected, found = weight(name, contents()), checkpoint.weight(name)
        assert (found.scheme, found.shape, list(found.parts)) == (expected.scheme, expected.shape, list(expected.parts))
        for part, tensor in expected.parts.items():
            assert torch.equal(found.parts[part], tensor)


def test_a_shard_holds_no_more_than_its_size_or_one_weight(tmp_path: Path) -> None:
    of = contents()
    manifest = written(tmp_path / "m", of, shard_bytes=6000)
    sizes: dict[str, list[int]] = {}
    for stored in manifest.weights.values():
        (file,) = {part.file for part in stored.parts.values()}  # a weight is never torn apart
        sizes.setdefault(file, []).append(sum(part.n_bytes for part in stored.parts.values()))
    assert list(sizes) == [f"weights-{number:05}.safetensors" for number in range(1, len(sizes) + 1)]
    assert len(sizes) > 3
    assert all(sum(size) <= 6000 or len(size) == 1 for size in sizes.values())
    assert list(open_manifest_checkpoint(tmp_path / "m").verify())


def test_the_safetensors_package_reads_what_is_written(tmp_path: Path) -> None:
    written(tmp_path / "m", contents())
    theirs = load_file(tmp_path / "m" / "weights-00001.safetensors")
    for name in contents().weights:
        for part, tensor in weight(name, contents()).parts.items():
            assert torch.equal(theirs[f"{name}.{part}"], tensor)


def test_only_one_weight_is_held_at_a_time(tmp_path: Path) -> None:
    of = contents()
    given: list[weakref.ref[Tensor]] = []

    def read(name: str) -> Weight:
        assert [alive for alive in given if alive() is not None] == [], name
        made = weight(name, of)
        given.extend(weakref.ref(tensor) for tensor in made.parts.values())
        return made

    drained(write_checkpoint(tmp_path / "m", of, read, identity="x", force=False))
    assert len(given) == sum(len(planned.parts) for planned in of.weights.values())


def test_a_tokenizer_is_copied_and_its_damage_noticed(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"pieces")
    tokenizer = TokenizerFiles((tmp_path / "tokenizer.model",), bos_id=1, stop_ids=(2, 5), add_bos=True)
    written(tmp_path / "m", contents(tokenizer))
    checkpoint = open_manifest_checkpoint(tmp_path / "m")
    entry = checkpoint.special_tokens
    assert entry is not None
    assert (entry.bos_id, entry.stop_ids, entry.add_bos) == (1, (2, 5), True)
    assert (tmp_path / "m" / "tokenizer.model").read_bytes() == b"pieces"
    (tmp_path / "m" / "tokenizer.model").write_bytes(b"Pieces")
    with pytest.raises(Exception, match=r"tokenizer\.model"):
        list(checkpoint.verify())


def test_the_manifest_has_the_hash_of_all_bytes_of_a_large_tensor_and_verifying_reads_them_all(tmp_path: Path) -> None:
    manifest = written(tmp_path / "m", contents(vocab_size=600_001))
    checkpoint = open_manifest_checkpoint(tmp_path / "m")
    at = manifest.weights["embedding"].parts["codes"]
    file, stored = tmp_path / "m" / at.file, checkpoint.shards[at.file].tensors["embedding.codes"]
    content = file.read_bytes()[stored.start : stored.end]
    assert len(content) == at.n_bytes > 1 << 24
    assert at.sha256 == hashlib.sha256(content).hexdigest()
    for position in ((1 << 24), len(content) - 1):
        with file.open("r+b") as opened:
            opened.seek(stored.start + position)
            opened.write(bytes([content[position] ^ 1]))
            opened.flush()
            with pytest.raises(CorruptError, match=r"embedding\.codes"):
                list(checkpoint.verify())
            opened.seek(stored.start + position)
            opened.write(content[position : position + 1])
    assert list(checkpoint.verify())


def test_an_empty_folder_is_a_free_place(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    written(tmp_path / "m", contents())
    assert list(open_manifest_checkpoint(tmp_path / "m").verify())


def test_a_file_is_no_place_for_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "m").write_text("taken")
    with pytest.raises(UsageError, match="exists, and is no checkpoint"):
        written(tmp_path / "m", contents())


@given(
    tensors=st.dictionaries(
        st.text(min_size=1, max_size=12),
        st.tuples(st.sampled_from(list(DTYPES.values())), st.lists(st.integers(0, 5), max_size=3)),
        max_size=6,
    )
)
def test_any_tensors_come_back_through_a_shard(
    tmp_path_factory: pytest.TempPathFactory, tensors: dict[str, tuple[torch.dtype, list[int]]]
) -> None:
    path = tmp_path_factory.mktemp("shard") / "x.safetensors"
    given = {
        name: torch.arange(torch.Size(shape).numel()).to(dtype).reshape(shape)
        for name, (dtype, shape) in tensors.items()
        if name != "__metadata__"
    }
    planned = {name: PlannedTensor(tensor.dtype, tuple(tensor.shape)) for name, tensor in given.items()}
    assert len(header(planned)) % 64 == 0
    list(write_shard(path, planned, iter(given.items())))
    shard = open_shard(path)
    assert list(shard.tensors) == list(given)
    for name, tensor in given.items():
        assert torch.equal(shard.tensor(name), tensor)
        assert shard.tensor(name).dtype is tensor.dtype
