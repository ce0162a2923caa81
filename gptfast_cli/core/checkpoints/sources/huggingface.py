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
from gptfast_cli.core.errors import CorruptError, UsageError
from gptfast_cli.core.families import TextModel, read_model
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
        return from_shards(folder, read_config(folder), SAFETENSORS.read(folder))


def read_config(folder: Path) -> TextModel:
    """The model of a folder's config.json. Raises CorruptError if it is damaged, UsageError if not supported."""
    fields = read_fields(folder / CONFIG_FILE, infinity=True)
    if "quantization_config" in fields:
        raise UsageError(
            f"{CONFIG_FILE}: the weights are quantized in a format that is not supported.",
            "Use the original model, and quantize that: gptfast quantize",
        )
    return read_model(fields)


def from_shards(folder: Path, model: TextModel, shards: Mapping[str, Shard]) -> ForeignCheckpoint:
    """The model with tensors in `shards`, under Hugging Face's names. Raises CorruptError for missing or extra ones."""
    # by the text model's name: the stored one
    stored = {name: tensor for tensor in shards if (name := model.tensor(tensor)) is not None}
    _check_names(folder, model, stored, shards)
    parts = {
        weight: tuple(tensor_part(shards[stored[tensor]], stored[tensor]) for tensor in tensors)
        for weight, tensors in model.family.sources(model.config).items()
    }
    check_parts(model.config, parts, CONFIG_FILE)
    files = sorted({shard.path for shard in shards.values()})
    notes = () if model.wrapper is None else (f"Of the {model.wrapper} model only the text model is used.",)
    return ForeignCheckpoint(folder, folder.name, model.config, CONFIG_FILE, tuple(files), parts, notes)


def _check_names(folder: Path, model: TextModel, stored: Mapping[str, str], shards: Mapping[str, Shard]) -> None:
    expected = {tensor for tensors in model.family.sources(model.config).values() for tensor in tensors}
    files = ", ".join(sorted({shard.path.name for shard in shards.values()})[:3])
    check_none(files or str(folder), expected - set(stored), f"missing, but required by {CONFIG_FILE}")
    extra = {stored[tensor] for tensor in stored if not tensor.endswith(_BUFFER) and tensor not in expected}
    if model.config.tied_embeddings:
        extra -= _identical_head(model, stored, shards)
    for tensor in sorted(extra):
        file = shards[tensor].path.name
        check_none(file, {name for name in extra if shards[name].path.name == file}, "not a tensor of this model")


def _identical_head(model: TextModel, stored: Mapping[str, str], shards: Mapping[str, Shard]) -> set[str]:
    """Name of a stored head of a tied model, checked to be identical to the embedding; empty if there is none."""
    sources = model.family.sources(replace(model.config, tied_embeddings=False))
    (head,), (embedding,) = sources["head"], sources["embedding"]
    if head not in stored:
        return set()
    head, embedding = stored[head], stored[embedding]
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
