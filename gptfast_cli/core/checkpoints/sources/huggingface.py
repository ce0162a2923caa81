"""A Hugging Face model folder: `config.json` beside one safetensors file, or several with an index.

A weight that we store as one matrix and Hugging Face as several is stacked (copied) when it is read; all others are
memory-mapped.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from gptfast_cli.core.checkpoints.foreign import (
    CONFIG_FILE,
    SAFETENSORS,
    ForeignCheckpoint,
    check_none,
    check_parts,
    tensor_part,
)
from gptfast_cli.core.checkpoints.shard import Shard
from gptfast_cli.core.config import ModelConfig
from gptfast_cli.core.errors import CorruptError, UsageError
from gptfast_cli.core.families import Family, family_of
from gptfast_cli.core.fields import read_fields

_BUFFER = "rotary_emb.inv_freq"  # RoPE frequencies saved by older transformers; computed from the config instead


class HuggingFace:
    """Source of Hugging Face folders."""

    looks_for = f"{CONFIG_FILE} with {SAFETENSORS.single}"
    rank = 10

    def holds(self, path: Path) -> bool:
        folder = path.parent if path.name in (SAFETENSORS.single, SAFETENSORS.index) else path
        return (folder / CONFIG_FILE).is_file() and SAFETENSORS.are_in(folder)

    def open(self, path: Path, *, allow_pickle: bool) -> ForeignCheckpoint:  # noqa: ARG002  # there are no pickles
        folder = path if path.is_dir() else path.parent
        family, config = read_config(folder)
        return from_shards(folder, family, config, SAFETENSORS.read(folder))


def read_config(folder: Path) -> tuple[Family, ModelConfig]:
    """Family and shape of a folder's config.json. Raises CorruptError if it is damaged, UsageError if not supported."""
    fields = read_fields(folder / CONFIG_FILE)
    if "quantization_config" in fields:
        raise UsageError(
            f"{CONFIG_FILE}: the weights are quantized in a format that is not supported.",
            "Use the original model, and quantize that: gptfast quantize",
        )
    family = family_of(fields)
    return family, family.config(fields.values)


def from_shards(folder: Path, family: Family, config: ModelConfig, shards: Mapping[str, Shard]) -> ForeignCheckpoint:
    """The model with tensors in `shards`, under Hugging Face's names. Raises CorruptError for missing or extra ones."""
    _check_names(folder, family, config, shards)
    parts = {
        weight: tuple(tensor_part(shards[tensor], tensor) for tensor in tensors)
        for weight, tensors in family.sources(config).items()
    }
    check_parts(config, parts, CONFIG_FILE)
    files = sorted({shard.path for shard in shards.values()})
    return ForeignCheckpoint(folder, folder.name, config, CONFIG_FILE, tuple(files), parts)


def _check_names(folder: Path, family: Family, config: ModelConfig, shards: Mapping[str, Shard]) -> None:
    expected = {tensor for tensors in family.sources(config).values() for tensor in tensors}
    files = ", ".join(sorted({shard.path.name for shard in shards.values()})[:3])
    check_none(files or str(folder), expected - set(shards), f"missing, but required by {CONFIG_FILE}")
    extra = {tensor for tensor in shards if not tensor.endswith(_BUFFER)} - expected
    if config.tied_embeddings:
        extra -= _identical_head(family, config, shards)
    for tensor in sorted(extra):
        file = shards[tensor].path.name
        check_none(file, {name for name in extra if shards[name].path.name == file}, "not a tensor of this model")


def _identical_head(family: Family, config: ModelConfig, shards: Mapping[str, Shard]) -> set[str]:
    """Name of a stored head of a tied model, checked to be identical to the embedding; empty if there is none."""
    sources = family.sources(replace(config, tied_embeddings=False))
    (head,), (embedding,) = sources["head"], sources["embedding"]
    if head not in shards:
        return set()
    check_identical(shards[head], head, shards[embedding], embedding)
    return {head}


def check_identical(of_head: Shard, head: str, of_embedding: Shard, embedding: str) -> None:
    """Raise CorruptError if the stored head of a tied model differs from the embedding."""
    ours, theirs = of_embedding.tensor(embedding).view(torch.uint8), of_head.tensor(head).view(torch.uint8)
    if not torch.equal(ours, theirs):
        raise CorruptError(
            f"{of_head.path.name}: {head}: differs from {embedding}, but {CONFIG_FILE} declares them tied",
            f'Set "tie_word_embeddings": false in {CONFIG_FILE} if the head was trained separately.',
        )


PLUG = HuggingFace()
