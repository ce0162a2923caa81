"""A Hugging Face model folder: `config.json` beside one safetensors file or several under an index.

It opens in place. A weight that we keep as one matrix and Hugging Face as several is stacked as it is read, one
copy of that weight and no other, so a model read whole takes about its own size; the rest is mapped.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from gptfast_cli.core.checkpoints.checkpoint import Piece
from gptfast_cli.core.checkpoints.shard import DTYPES, Shard, StoredTensor
from gptfast_cli.core.checkpoints.weight_files import open_weight_files, refuse
from gptfast_cli.core.config import ModelConfig
from gptfast_cli.core.errors import CorruptError, UsageError
from gptfast_cli.core.families import Family, family_of
from gptfast_cli.core.fields import Fields, read_fields
from gptfast_cli.core.formats import Weight
from gptfast_cli.core.formats.plain import plain
from gptfast_cli.core.model.weights import weight_shapes

CONFIG_FILE = "config.json"

_FLOATING = ("F32", "F16", "BF16")
_BUFFER = "rotary_emb.inv_freq"  # RoPE frequencies that older transformers saved; they follow from the config


@dataclass(frozen=True, slots=True)
class HuggingFaceCheckpoint:
    """A Hugging Face folder read in place; see Checkpoint.

    shards:  the file of each tensor, by Hugging Face's name for the tensor
    sources: Hugging Face's tensors of each weight, by our name for the weight
    """

    path: Path
    config: ModelConfig
    shards: Mapping[str, Shard]
    sources: Mapping[str, tuple[str, ...]]

    @property
    def name(self) -> str:
        """See Checkpoint."""
        return self.path.name

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of most of the bytes."""
        sizes = dict.fromkeys(_FLOATING, 0)
        for stored in self._stored():
            sizes[stored.dtype] += stored.end - stored.start
        return DTYPES[max(sizes, key=sizes.__getitem__)]

    @property
    def scheme(self) -> str:
        """See Checkpoint."""
        return "plain"

    @property
    def n_bytes(self) -> int:
        """See Checkpoint."""
        return sum(stored.end - stored.start for stored in self._stored())

    @property
    def n_params(self) -> int:
        """See Checkpoint."""
        return sum((stored.end - stored.start) // DTYPES[stored.dtype].itemsize for stored in self._stored())

    @property
    def special_tokens(self) -> None:
        """None: the folder's tokenizer files say which tokens are special."""
        return

    def weight(self, name: str) -> Weight:
        """See Checkpoint."""
        tensors = [piece.tensor for piece in self.pieces(name)]
        return plain(tensors[0] if len(tensors) == 1 else torch.cat(tensors))

    def pieces(self, name: str) -> Iterator[Piece]:
        """See Checkpoint."""
        for tensor in self.sources[name]:
            shard = self.shards[tensor]
            yield Piece(f"{shard.path.name}: {tensor}", shard.tensor(tensor))

    def _stored(self) -> Iterator[StoredTensor]:
        return (self.shards[tensor].tensors[tensor] for tensors in self.sources.values() for tensor in tensors)


class HuggingFace:
    """Folders as transformers writes them; see Source."""

    looks_for = CONFIG_FILE

    def holds(self, folder: Path) -> bool:
        """See Source."""
        return (folder / CONFIG_FILE).is_file()

    def open(self, folder: Path) -> HuggingFaceCheckpoint:
        """See Source."""
        fields = read_fields(folder / CONFIG_FILE)
        family = _family(fields)
        config = family.config(fields.values)
        shards = open_weight_files(folder)
        sources = family.sources(config)
        _check_names(family, config, shards)
        _check_shapes(config, sources, shards)
        return HuggingFaceCheckpoint(folder, config, shards, sources)


def _family(fields: Fields) -> Family:
    if "quantization_config" in fields:
        raise UsageError(
            f"{CONFIG_FILE}: the weights are quantised in a format of another program.",
            "Take the model that it was made from, and quantise that: gptfast quantize",
        )
    return family_of(fields)


def _check_names(family: Family, config: ModelConfig, shards: Mapping[str, Shard]) -> None:
    expected = {tensor for tensors in family.sources(config).values() for tensor in tensors}
    files = ", ".join(sorted({shard.path.name for shard in shards.values()})[:3])
    refuse(files, expected - set(shards), "missing, and the shape in config.json needs it")
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
    ours, theirs = (shards[name].tensor(name).view(torch.uint8) for name in (embedding, head))
    if not torch.equal(ours, theirs):
        raise CorruptError(
            f"{shards[head].path.name}: {head}: differs from {embedding}, and config.json says that they are tied",
            'Set "tie_word_embeddings": false in config.json if the head was trained by itself.',
        )
    return {head}


def _check_shapes(config: ModelConfig, sources: Mapping[str, tuple[str, ...]], shards: Mapping[str, Shard]) -> None:
    for weight, shape in weight_shapes(config).items():
        for tensor, n_rows in zip(sources[weight], _rows(config, weight, n_pieces=len(sources[weight])), strict=True):
            stored, file = shards[tensor].tensors[tensor], shards[tensor].path.name
            wanted = (n_rows or shape[0], *shape[1:])
            if stored.shape != wanted:
                raise CorruptError(
                    f"{file}: {tensor}: shape is {list(stored.shape)}, and config.json makes it {list(wanted)}",
                    "config.json and the weights belong to different models: fetch the repository again.",
                )
            if stored.dtype not in _FLOATING:
                raise UsageError(f"{file}: {tensor}: dtype {stored.dtype} is none of {', '.join(_FLOATING)}.")


def _rows(config: ModelConfig, weight: str, *, n_pieces: int) -> tuple[int | None, ...]:
    """Rows of each tensor that a weight is stacked from; None for a weight that is one tensor."""
    match weight.rpartition(".")[2].removesuffix("_bias"), n_pieces:
        case "qkv", 3:
            return config.q_dim, config.kv_dim, config.kv_dim
        case "gate_up", 2:
            return config.ffn_dim, config.ffn_dim
        case _:
            return (None,)


PLUG = HuggingFace()
