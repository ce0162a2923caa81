"""Checkpoints of other programs: their weight files, and their tensors as the weights of our layers.

Nothing is read before it is asked for, and what is brought into our order is a copy of one weight and no more.
"""

import math
import re
import shlex
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from gptfast_cli.core.checkpoints.checkpoint import Piece
from gptfast_cli.core.checkpoints.downloads import FETCH_AGAIN, downloaded_checksum, fetch_command
from gptfast_cli.core.checkpoints.pickles import open_pickle
from gptfast_cli.core.checkpoints.shard import DTYPES, Shard, open_shard, touched_in_part
from gptfast_cli.core.config import ModelConfig
from gptfast_cli.core.digest import can_compute
from gptfast_cli.core.errors import CorruptError, UsageError
from gptfast_cli.core.events import Progress
from gptfast_cli.core.fields import Fields, read_fields
from gptfast_cli.core.models.weights import weight_shapes
from gptfast_cli.core.schemes import Block, Weight
from gptfast_cli.core.schemes.plain import NAME as PLAIN
from gptfast_cli.core.schemes.plain import plain


@dataclass(frozen=True, slots=True)
class WeightFiles:
    """A kind of weight files."""

    single: str
    index: str
    open: Callable[[Path], Shard]

    @property
    def suffix(self) -> str:
        """Suffix of shard names."""
        return Path(self.single).suffix

    def are_in(self, folder: Path) -> bool:
        """Whether a folder has such files."""
        return (folder / self.single).is_file() or (folder / self.index).is_file()

    def read(self, folder: Path) -> dict[str, Shard]:
        """The shard of every tensor in the folder, by the tensor's name.

        Raises CorruptError if files are missing or the index and the shards contradict each other.
        """
        if (folder / self.single).is_file():  # as transformers has it: the single file before the index
            shard = self.open(folder / self.single)
            return dict.fromkeys(shard.tensors, shard)
        return self._indexed(folder)

    def _indexed(self, folder: Path) -> dict[str, Shard]:
        weight_map = read_fields(folder / self.index).section("weight_map")
        files = {tensor: self._plain_name(weight_map, tensor) for tensor in weight_map}
        missing = {file for file in files.values() if not (folder / file).is_file()}
        refuse(str(folder), missing, f"missing, and {self.index} names it")
        shards = {file: self.open(folder / file) for file in sorted(set(files.values()))}
        for file, shard in shards.items():
            self._check_against_index(file, shard, files)
        return {tensor: shards[file] for tensor, file in files.items()}

    def _check_against_index(self, file: str, shard: Shard, files: Mapping[str, str]) -> None:
        promised = {tensor for tensor, place in files.items() if place == file}
        refuse(file, promised - set(shard.tensors), f"not in the file, and {self.index} says it is")
        refuse(file, set(shard.tensors) - promised, f"in the file, and {self.index} does not say so")

    def _plain_name(self, weight_map: Fields, tensor: str) -> str:
        file = weight_map.text(tensor)
        if not re.fullmatch(rf"[\w.-]+{re.escape(self.suffix)}", file):
            kind = self.suffix.removeprefix(".")
            raise weight_map.corrupt(tensor, f"{file!r} is not the name of a {kind} file in the folder")
        return file


SAFETENSORS = WeightFiles("model.safetensors", "model.safetensors.index.json", open_shard)
PICKLES = WeightFiles("pytorch_model.bin", "pytorch_model.bin.index.json", open_pickle)


def refuse(where: str, names: Collection[str], what: str) -> None:
    """Raise CorruptError that names the first few of `names`, and how many there are, if there are any."""
    if names:
        shown = ", ".join(sorted(names)[:3]) + (f" … ({len(names)} in all)" if len(names) > 3 else "")
        raise CorruptError(f"{where}: {shown}: {what}", FETCH_AGAIN)


CONFIG_FILE = "config.json"

_FLOATING = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True, slots=True)
class WeightPart:
    """Rows of a weight: place (`file: tensor`), shape and dtype, and how to read them in our order."""

    place: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    read: Callable[[], Tensor]

    @property
    def n_params(self) -> int:
        """Numbers that it holds."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class ForeignCheckpoint:
    """A Checkpoint that another program wrote.

    declared_by: the file that says what shape the model has, or "the header"
    files:       that hold the weights
    parts:       what each weight is stacked from, from its first row to its last, by our name for the weight
    remarks:     see Checkpoint
    """

    path: Path
    name: str
    config: ModelConfig
    declared_by: str
    files: tuple[Path, ...]
    parts: Mapping[str, tuple[WeightPart, ...]]
    remarks: tuple[str, ...] = ()

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of most of the bytes."""
        sizes = dict.fromkeys(_FLOATING, 0)
        for part in self._all():
            sizes[part.dtype] += part.n_params * part.dtype.itemsize
        return max(sizes, key=sizes.__getitem__)

    @property
    def scheme(self) -> str:
        return PLAIN

    @property
    def stored_as(self) -> str:
        return PLAIN

    @property
    def n_bytes(self) -> int:
        return sum(part.n_params * part.dtype.itemsize for part in self._all())

    @property
    def n_params(self) -> int:
        return sum(part.n_params for part in self._all())

    @property
    def special_tokens(self) -> None:
        """None: the folder's tokenizer files say which tokens are special."""
        return

    @property
    def calibration(self) -> None:
        """None: other formats do not record it."""
        return

    def dtypes(self, name: str) -> tuple[torch.dtype, ...]:
        return tuple(part.dtype for part in self.parts[name])

    def weight(self, name: str, block: Block | None = None) -> Weight:
        tensors = [piece.tensor for piece in self.pieces(name)]
        if block is not None:
            tensors = list(map(touched_in_part, tensors))
        if block is not None and block.rows is not None:
            tensors = [rows for wanted in block.rows for rows in _rows_of(tensors, wanted)]
        whole = plain(tensors[0] if len(tensors) == 1 else torch.cat(tensors))
        return whole if block is None else whole.block(Block(columns=block.columns))

    def pieces(self, name: str) -> Iterator[Piece]:
        for part in self.parts[name]:
            yield Piece(part.place, part.read())

    def verify(self) -> Iterator[Progress]:
        """See Checkpoint; the hashes are those of the Hub or of S3, where the files were downloaded from there."""
        damaged, done, total = {}, 0, sum(file.stat().st_size for file in self.files)
        for file in self.files:
            checksum = downloaded_checksum(file)
            if checksum is None or not can_compute(checksum.algorithm):
                raise UsageError(
                    f"{file.name}: no hash of it is known to compare with.",
                    f"A checkpoint has its own: gptfast convert {shlex.quote(str(self.path))}",
                )
            if not checksum.is_of_file(file):
                damaged[file] = f"{file.name} ({checksum.algorithm} differs)"
            done += file.stat().st_size
            yield Progress("verify", done, total, "bytes")
        if damaged:
            more = f" and {len(damaged) - 3} files more" if len(damaged) > 3 else ""
            raise CorruptError(
                f"{', '.join(list(damaged.values())[:3])}{more}: not the bytes that were downloaded.",
                f"Fetch it again: {fetch_command(self.path, list(damaged))}",
            )

    def _all(self) -> Iterator[WeightPart]:
        return (part for parts in self.parts.values() for part in parts)


def fetch_config(folder: Path) -> str:
    """The hint to put a config.json beside the weights."""
    place = shlex.quote(str(folder))
    return f"Put its {CONFIG_FILE} there: gptfast download org/name --include {CONFIG_FILE} --local-dir {place}"


def stored_part(shard: Shard, tensor: str) -> WeightPart:
    """A tensor of a file, unchanged."""
    stored = shard.tensors[tensor]
    place = f"{shard.path.name}: {tensor}"
    return WeightPart(place, DTYPES[stored.dtype], stored.shape, lambda: shard.tensor(tensor))


def some_rows(part: WeightPart, rows: slice) -> WeightPart:
    """Some rows of a part."""
    n_rows = len(range(*rows.indices(part.shape[0])))
    return replace(part, shape=(n_rows, *part.shape[1:]), read=lambda: part.read()[rows])


def joined(parts: Sequence[WeightPart], axis: int) -> WeightPart:
    """Matrices side by side along an axis, under the place of the first; CorruptError where they do not fit."""
    first = parts[0]
    for part in parts:
        is_alike = part.dtype == first.dtype and _without(part.shape, axis) == _without(first.shape, axis)
        if len(part.shape) != 2 or not is_alike:
            raise CorruptError(
                f"{part.place}: is {part.dtype} {list(part.shape)}, which does not fit {first.dtype} "
                f"{list(first.shape)} of {first.place}",
                "The files belong to different models: fetch all of them again.",
            )
    shape = (*first.shape[:axis], sum(part.shape[axis] for part in parts), *first.shape[axis + 1 :])
    return replace(first, shape=shape, read=lambda: torch.cat([part.read() for part in parts], dim=axis))


def half_split(part: WeightPart, head_dim: int) -> WeightPart:
    """Permute query or key rows from adjacent RoPE pairs to pairs half a head apart.

    Row 2i of a head becomes row i, and row 2i + 1 row i + head_dim / 2: Meta's form, of Su et al. 2021, becomes that
    of transformers, which is ours. Queries and keys change alike, so that their products stay what they were.
    """
    return replace(part, read=lambda: _half_split(part.read(), head_dim))


def check_parts(config: ModelConfig, parts: Mapping[str, Sequence[WeightPart]], said_by: str) -> None:
    """Raise CorruptError if a shape is not what `said_by` makes it, UsageError if a dtype is not floating."""
    for weight, shape in weight_shapes(config).items():
        for part, n_rows in zip(parts[weight], _rows(config, weight, n_parts=len(parts[weight])), strict=True):
            wanted = (n_rows or shape[0], *shape[1:])
            if part.shape != wanted:
                raise CorruptError(
                    f"{part.place}: shape is {list(part.shape)}, and {said_by} makes it {list(wanted)}",
                    f"{said_by} and the weights belong to different models: fetch all of it again.",
                )
            if part.dtype not in _FLOATING:
                known = ", ".join(str(dtype).removeprefix("torch.") for dtype in _FLOATING)
                raise UsageError(f"{part.place}: dtype {str(part.dtype).removeprefix('torch.')} is none of {known}.")


def _without(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return shape[:axis] + shape[axis + 1 :]


def _rows_of(tensors: Sequence[Tensor], wanted: slice) -> Iterator[Tensor]:
    """Some rows of tensors that stand one below the other, as views."""
    first = 0
    for tensor in tensors:
        rows = slice(max(0, wanted.start - first), max(0, min(len(tensor), wanted.stop - first)))
        if rows.start < rows.stop:
            yield tensor[rows]
        first += len(tensor)


def _half_split(rows: Tensor, head_dim: int) -> Tensor:
    pairs = rows.view(-1, head_dim // 2, 2, rows.shape[-1])  # [heads, head_dim / 2, 2, dim]
    return pairs.transpose(1, 2).reshape(rows.shape)


def _rows(config: ModelConfig, weight: str, *, n_parts: int) -> tuple[int | None, ...]:
    """Rows of each part that a weight is stacked from; None for a weight that is one part."""
    match weight.rpartition(".")[2].removesuffix("_bias"), n_parts:
        case "qkv", 3:
            return config.q_dim, config.kv_dim, config.kv_dim
        case "gate_up", 2:
            return config.ffn_dim, config.ffn_dim
        case _:
            return (None,)


EMBEDDING, NORM, HEAD = "tok_embeddings.weight", "norm.weight", "output.weight"
QUERY, KEY, VALUE = (f"attention.{name}.weight" for name in ("wq", "wk", "wv"))
GATE, UP = (f"feed_forward.{name}.weight" for name in ("w1", "w3"))
OUTPUT, DOWN = "attention.wo.weight", "feed_forward.w2.weight"
ATTENTION_NORM, FFN_NORM = "attention_norm.weight", "ffn_norm.weight"

IN_LAYER = (ATTENTION_NORM, QUERY, KEY, VALUE, OUTPUT, FFN_NORM, GATE, UP, DOWN)


def meta_names(config: ModelConfig) -> list[str]:
    """The name of every tensor that a model of this shape has."""
    layers = [f"layers.{layer}.{name}" for layer in range(config.n_layers) for name in IN_LAYER]
    return [EMBEDDING, *layers, NORM, *([] if config.tied_embeddings else [HEAD])]


def meta_parts(config: ModelConfig, tensor: Callable[[str], WeightPart]) -> dict[str, tuple[WeightPart, ...]]:
    """The parts of each of our weights, from Meta's tensors by name."""
    parts: dict[str, tuple[WeightPart, ...]] = {"embedding": (tensor(EMBEDDING),)}
    for layer in (f"layers.{layer}." for layer in range(config.n_layers)):
        parts[f"{layer}attention_norm"] = (tensor(layer + ATTENTION_NORM),)
        parts[f"{layer}qkv"] = (
            half_split(tensor(layer + QUERY), config.head_dim),
            half_split(tensor(layer + KEY), config.head_dim),
            tensor(layer + VALUE),
        )
        parts[f"{layer}attention_output"] = (tensor(layer + OUTPUT),)
        parts[f"{layer}ffn_norm"] = (tensor(layer + FFN_NORM),)
        parts[f"{layer}gate_up"] = (tensor(layer + GATE), tensor(layer + UP))
        parts[f"{layer}down"] = (tensor(layer + DOWN),)
    parts["norm"] = (tensor(NORM),)
    if not config.tied_embeddings:
        parts["head"] = (tensor(HEAD),)
    return parts
