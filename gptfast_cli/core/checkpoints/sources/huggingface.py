"""A Hugging Face model folder: `config.json` beside one safetensors file or several under an index.

It opens in place. A weight that we keep as one matrix and Hugging Face as several is stacked as it is read, one
copy of that weight and no other, so a model read whole takes about its own size; the rest is mapped.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from gptfast_cli.core.checkpoints.foreign import (
    CONFIG_FILE,
    SAFETENSORS,
    ForeignCheckpoint,
    check_parts,
    refuse,
    stored_part,
)
from gptfast_cli.core.checkpoints.shard import Shard
from gptfast_cli.core.config import ModelConfig
from gptfast_cli.core.errors import CorruptError, UsageError
from gptfast_cli.core.families import Family, family_of
from gptfast_cli.core.fields import read_fields

_BUFFER = "rotary_emb.inv_freq"  # RoPE frequencies that older transformers saved; they follow from the config


class HuggingFace:
    """Folders as transformers writes them; see Source."""

    looks_for = f"{CONFIG_FILE} with {SAFETENSORS.single}"
    rank = 10

    def holds(self, path: Path) -> bool:
        folder = path.parent if path.name in (SAFETENSORS.single, SAFETENSORS.index) else path
        return (folder / CONFIG_FILE).is_file() and SAFETENSORS.are_in(folder)

    def open(self, path: Path, *, allow_pickle: bool) -> ForeignCheckpoint:  # noqa: ARG002  # there is none
        folder = path if path.is_dir() else path.parent
        family, config = read_config(folder)
        return from_shards(folder, family, config, SAFETENSORS.read(folder))


def read_config(folder: Path) -> tuple[Family, ModelConfig]:
    """The family and the shape that the folder's config.json declares.

    Raises CorruptError if it is damaged, UsageError if the model needs what gptfast lacks.
    """
    fields = read_fields(folder / CONFIG_FILE)
    if "quantization_config" in fields:
        raise UsageError(
            f"{CONFIG_FILE}: the weights are quantised in a format of another program.",
            "Take the model that it was made from, and quantise that: gptfast quantize",
        )
    family = family_of(fields)
    return family, family.config(fields.values)


def from_shards(folder: Path, family: Family, config: ModelConfig, shards: Mapping[str, Shard]) -> ForeignCheckpoint:
    """The model whose tensors are in `shards`, under Hugging Face's names; raises CorruptError if some are not."""
    _check_names(folder, family, config, shards)
    parts = {
        weight: tuple(stored_part(shards[tensor], tensor) for tensor in tensors)
        for weight, tensors in family.sources(config).items()
    }
    check_parts(config, parts, CONFIG_FILE)
    files = sorted({shard.path for shard in shards.values()})
    return ForeignCheckpoint(folder, folder.name, config, CONFIG_FILE, tuple(files), parts)


def _check_names(folder: Path, family: Family, config: ModelConfig, shards: Mapping[str, Shard]) -> None:
    expected = {tensor for tensors in family.sources(config).values() for tensor in tensors}
    files = ", ".join(sorted({shard.path.name for shard in shards.values()})[:3])
    refuse(files or str(folder), expected - set(shards), f"missing, and the shape in {CONFIG_FILE} needs it")
    extra = {tensor for tensor in shards if not tensor.endswith(_BUFFER)} - expected
    if config.tied_embeddings:
        extra -= _identical_head(family, config, shards)
    for tensor in sorted(extra):
        file = shards[tensor].path.name
        refuse(file, {name for name in extra if shards[name].path.name == file}, "none of this model's tensors")


def _identical_head(family: Family, config: ModelConfig, shards: Mapping[str, Shard]) -> set[str]:
    """The output head that a file may hold although it is tied, if it is the embedding indeed."""
    sources = family.sources(replace(config, tied_embeddings=False))
    (head,), (embedding,) = sources["head"], sources["embedding"]
    if head not in shards:
        return set()
    check_identical(shards[head], head, shards[embedding], embedding)
    return {head}


def check_identical(of_head: Shard, head: str, of_embedding: Shard, embedding: str) -> None:
    """Raise CorruptError if a head that is stored although it is tied is not the embedding."""
    ours, theirs = of_embedding.tensor(embedding).view(torch.uint8), of_head.tensor(head).view(torch.uint8)
    if not torch.equal(ours, theirs):
        raise CorruptError(
            f"{of_head.path.name}: {head}: differs from {embedding}, and {CONFIG_FILE} says that they are tied",
            f'Set "tie_word_embeddings": false in {CONFIG_FILE} if the head was trained by itself.',
        )


PLUG = HuggingFace()
