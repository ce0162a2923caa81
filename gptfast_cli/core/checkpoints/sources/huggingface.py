"""A Hugging Face model folder: `config.json` beside one safetensors file, or several with an index.

A weight that we store as one matrix and Hugging Face as several is stacked (copied) when it is read; all others are
memory-mapped. Where a file declares that weights are quantized, its method (`checkpoints.methods`) reads them.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import torch

from gptfast_cli.core.checkpoints.foreign import (
    CONFIG_FILE,
    SAFETENSORS,
    ForeignCheckpoint,
    WeightFiles,
    check_none,
    check_parts,
    part_rows,
    tensor_part,
)
from gptfast_cli.core.checkpoints.methods import UNUSED, WEIGHT, StoredModule, quantized_modules, weight_part
from gptfast_cli.core.checkpoints.quantization_config import read_quantization_config
from gptfast_cli.core.checkpoints.shard import Shard
from gptfast_cli.core.device import DTYPES
from gptfast_cli.core.errors import CorruptError, UsageError
from gptfast_cli.core.families import TextModel, read_model
from gptfast_cli.core.fields import Fields, read_fields
from gptfast_cli.core.models.weights import weight_shapes
from gptfast_cli.core.schemes.plain import NAME as PLAIN

_BUFFER = "rotary_emb.inv_freq"  # RoPE frequencies saved by older transformers; computed from the config instead


class HuggingFace:
    """Source of Hugging Face folders."""

    looks_for = f"{CONFIG_FILE} with {SAFETENSORS.single}"
    rank = 10

    def holds(self, path: Path) -> bool:
        folder = path.parent if path.name in (SAFETENSORS.single, SAFETENSORS.index) else path
        return (folder / CONFIG_FILE).is_file() and SAFETENSORS.are_in(folder)

    def open(self, path: Path, *, allow_pickle: bool) -> ForeignCheckpoint:  # noqa: ARG002  # there are no pickles
        return open_folder(path if path.is_dir() else path.parent, SAFETENSORS)


def read_config(folder: Path) -> TextModel:
    """The model of a folder's config.json, whose weights are plain.

    Raises CorruptError if it is damaged, UsageError if it is not supported.
    """
    if (declared := read_quantization_config(folder)) is not None:
        raise UsageError(
            f"{declared.declared.where}: declares weights in the format {declared}, and these files have none.",
            "Use the original model, and quantize that: gptfast quantize",
        )
    return read_model(read_fields(folder / CONFIG_FILE, infinity=True))


def open_folder(folder: Path, weights: WeightFiles) -> ForeignCheckpoint:
    """The model of a folder's config.json with tensors in such files, under Hugging Face's names.

    Raises CorruptError if the config is damaged or tensors are missing or too many, UsageError if the model, or how
    it is quantized, is not supported.
    """
    fields = read_fields(folder / CONFIG_FILE, infinity=True)
    model, declared = read_model(fields), read_quantization_config(folder)
    shards = weights.read(folder)
    files = tuple(sorted({shard.path for shard in shards.values()}))
    # by the text model's name: the stored one
    stored = {name: tensor for tensor in shards if (name := model.tensor(tensor)) is not None}
    modules = {} if declared is None else quantized_modules(declared, _matrices(model), stored, shards)
    _check_names(folder, model, stored, shards, modules)
    parts = {
        weight: tuple(
            tensor_part(shards[stored[tensor]], stored[tensor])
            if (module := modules.get(tensor.removesuffix(f".{WEIGHT}"))) is None
            else weight_part(module)
            for tensor in tensors
        )
        for weight, tensors in model.family.sources(model.config).items()
    }
    check_parts(model.config, parts, CONFIG_FILE)
    notes = [] if model.wrapper is None else [f"Of the {model.wrapper} model only the text model is used."]
    if declared is None:
        return ForeignCheckpoint(folder, folder.name, model.config, CONFIG_FILE, files, parts, tuple(notes))
    notes += _unused(stored)
    scheme, made_in = str(declared) if modules else PLAIN, _dtype(fields)
    return ForeignCheckpoint(
        folder, folder.name, model.config, CONFIG_FILE, files, parts, tuple(notes), scheme, made_in
    )


def _matrices(model: TextModel) -> dict[str, tuple[int, int]]:
    """Modules that have a matrix, and its shape."""
    shapes, found = weight_shapes(model.config), {}
    for weight, tensors in model.family.sources(model.config).items():
        shape = shapes[weight]
        if len(shape) == 2:
            for tensor, n_rows in zip(tensors, part_rows(model.config, weight, n_parts=len(tensors)), strict=True):
                found[tensor.removesuffix(f".{WEIGHT}")] = (n_rows or shape[0], shape[1])
    return found


def _check_names(
    folder: Path,
    model: TextModel,
    stored: Mapping[str, str],
    shards: Mapping[str, Shard],
    modules: Mapping[str, StoredModule],
) -> None:
    names = {tensor for tensors in model.family.sources(model.config).values() for tensor in tensors}
    expected = {name for name in names if name.removesuffix(f".{WEIGHT}") not in modules}
    files = ", ".join(sorted({shard.path.name for shard in shards.values()})[:3])
    check_none(files or str(folder), expected - set(stored), f"missing, but required by {CONFIG_FILE}")
    extra = {stored[tensor] for tensor in stored if not tensor.endswith(_BUFFER) and tensor not in expected}
    for name, module in modules.items():
        extra -= {tensor for _, tensor in module.tensors.values()}
        if (bias := stored.get(f"{name}.bias")) in extra and not shards[bias].tensor(bias).any():
            extra.remove(bias)  # older AutoGPTQ gives every module a bias
    if modules:
        extra = {tensor for tensor in extra if tensor.rpartition(".")[2] not in UNUSED}
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


def _unused(stored: Mapping[str, str]) -> Iterator[str]:
    """What is not done with some of the stored tensors."""
    for what in sorted({UNUSED[name] for tensor in stored if (name := tensor.rpartition(".")[2]) in UNUSED}):
        yield f"Scales that are stored for {what} are not used: nothing but the weights is quantized by stored scales."


def _dtype(fields: Fields) -> torch.dtype | None:
    """In which the model is declared to compute; None if it is not, or in another than ours."""
    text = fields.section("text_config") if "text_config" in fields else fields
    found = (of.values.get(key) for of in (text, fields) for key in ("dtype", "torch_dtype"))
    return next((DTYPES[name] for name in found if isinstance(name, str) and name in DTYPES), None)


def check_identical(of_head: Shard, head: str, of_embedding: Shard, embedding: str) -> None:
    """Raise CorruptError if the stored head of a tied model differs from the embedding."""
    ours, theirs = of_embedding.tensor(embedding).view(torch.uint8), of_head.tensor(head).view(torch.uint8)
    if not torch.equal(ours, theirs):
        raise CorruptError(
            f"{of_head.path.name}: {head}: differs from {embedding}, but {CONFIG_FILE} declares them tied",
            f'Set "tie_word_embeddings": false in {CONFIG_FILE} if the head was trained separately.',
        )


PLUG = HuggingFace()
