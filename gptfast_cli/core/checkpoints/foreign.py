"""Checkpoints of other programs: their weight files, and how their tensors map to our weights.

Weights are read on request; where tensors are stacked or permuted, one weight at a time is copied.
"""

import math
import re
import shlex
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gptfast_cli.core.checkpoints.checkpoint import LocatedTensor, read_generation_config
from gptfast_cli.core.checkpoints.downloads import FETCH_AGAIN, downloaded_checksum, fetch_command
from gptfast_cli.core.checkpoints.pickles import open_pickle
from gptfast_cli.core.checkpoints.shard import DTYPES, Shard, advise_random_access, open_shard
from gptfast_cli.core.config import ModelConfig
from gptfast_cli.core.device import dtype_name
from gptfast_cli.core.digest import can_compute
from gptfast_cli.core.errors import CorruptError, UsageError
from gptfast_cli.core.events import Progress
from gptfast_cli.core.fields import Fields, read_fields
from gptfast_cli.core.models.weights import layer_of, weight_shapes
from gptfast_cli.core.schemes import Block, Weight
from gptfast_cli.core.schemes.plain import NAME as PLAIN
from gptfast_cli.core.schemes.plain import plain
from gptfast_cli.core.schemes.stacked import stack


@dataclass(frozen=True, slots=True)
class WeightFiles:
    """Names of the weight files of one format: a single file, or shards with an index."""

    single: str
    index: str
    open: Callable[[Path], Shard]

    @property
    def suffix(self) -> str:
        """File suffix of shards."""
        return Path(self.single).suffix

    def are_in(self, folder: Path) -> bool:
        """Whether a folder has such files."""
        return (folder / self.single).is_file() or (folder / self.index).is_file()

    def read(self, folder: Path) -> dict[str, Shard]:
        """The shard of every tensor in the folder, by tensor name.

        Raises CorruptError if files are missing or the index and the shards disagree.
        """
        if (folder / self.single).is_file():  # takes precedence over an index, as in transformers
            shard = self.open(folder / self.single)
            return dict.fromkeys(shard.tensors, shard)
        return self._indexed(folder)

    def _indexed(self, folder: Path) -> dict[str, Shard]:
        weight_map = read_fields(folder / self.index).section("weight_map")
        files = {tensor: self._plain_name(weight_map, tensor) for tensor in weight_map}
        missing = {file for file in files.values() if not (folder / file).is_file()}
        check_none(str(folder), missing, f"missing, but listed in {self.index}")
        shards = {file: self.open(folder / file) for file in sorted(set(files.values()))}
        for file, shard in shards.items():
            self._check_against_index(file, shard, files)
        return {tensor: shards[file] for tensor, file in files.items()}

    def _check_against_index(self, file: str, shard: Shard, files: Mapping[str, str]) -> None:
        indexed = {tensor for tensor, holder in files.items() if holder == file}
        check_none(file, indexed - set(shard.tensors), f"not in the file, but listed in {self.index}")
        check_none(file, set(shard.tensors) - indexed, f"in the file, but not listed in {self.index}")

    def _plain_name(self, weight_map: Fields, tensor: str) -> str:
        file = weight_map.text(tensor)
        if not re.fullmatch(rf"[\w.-]+{re.escape(self.suffix)}", file):
            kind = self.suffix.removeprefix(".")
            raise weight_map.corrupt(tensor, f"{file!r} is not the name of a {kind} file in the folder")
        return file


SAFETENSORS = WeightFiles("model.safetensors", "model.safetensors.index.json", open_shard)
PICKLES = WeightFiles("pytorch_model.bin", "pytorch_model.bin.index.json", open_pickle)


def check_none(where: str, names: Collection[str], what: str) -> None:
    """Raise CorruptError with the first few of `names` and their number, unless there are none."""
    if names:
        shown = ", ".join(sorted(names)[:3]) + (f" … ({len(names)} in all)" if len(names) > 3 else "")
        raise CorruptError(f"{where}: {shown}: {what}", FETCH_AGAIN)


CONFIG_FILE = "config.json"

_FLOATING = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True, slots=True)
class WeightPart:
    """Rows of a weight in a foreign file, in any scheme.

    location: `file: tensor`
    outline:  the rows on the meta device, but for parts that all rows share, which may be anywhere
    read:     returns them in our order
    """

    location: str
    outline: Weight
    read: Callable[[], Weight]

    @property
    def shape(self) -> tuple[int, ...]:
        """Logical shape of the rows."""
        return self.outline.shape


@dataclass(frozen=True, slots=True)
class ForeignCheckpoint:
    """A Checkpoint that another program wrote.

    config_source: the file that declares the shape, or "the header"
    parts:         the parts that are stacked along the rows of each weight, by our name for the weight
    scheme:        how most matrices are stored, in the words of the format, such as "plain" or "Q4_K_M"
    made_in:       dtype in which a quantized model is declared to compute
    """

    path: Path
    name: str
    config: ModelConfig
    config_source: str
    files: tuple[Path, ...]
    parts: Mapping[str, tuple[WeightPart, ...]]
    notes: tuple[str, ...] = ()
    scheme: str = PLAIN
    made_in: torch.dtype | None = None

    @property
    def dtype(self) -> torch.dtype:
        """That in which it is made to compute, else the floating dtype with the most bytes."""
        if self.made_in is not None:
            return self.made_in
        sizes = dict.fromkeys(_FLOATING, 0)
        for tensor in (tensor for part in self._all() for tensor in part.outline.parts.values()):
            if tensor.dtype in sizes:
                sizes[tensor.dtype] += tensor.nbytes
        return max(sizes, key=sizes.__getitem__)

    @property
    def stored_as(self) -> str:
        return self.scheme

    @property
    def n_bytes(self) -> int:
        return sum(part.outline.n_bytes for part in self._all())

    @property
    def n_params(self) -> int:
        return sum(math.prod(part.shape) for part in self._all())

    @property
    def special_tokens(self) -> None:
        """None: special tokens are read from the folder's tokenizer files."""
        return

    @property
    def calibration(self) -> None:
        """None: other formats do not record it."""
        return

    @property
    def generation_config(self) -> Mapping[str, Any]:
        return read_generation_config(self.path)

    def outline(self, name: str) -> Weight:
        return stack([part.outline for part in self.parts[name]])

    def weight(self, name: str, block: Block | None = None) -> Weight:
        pieces = [part.read() for part in self.parts[name]]
        if block is not None:
            for tensor in (tensor for piece in pieces for tensor in piece.parts.values()):
                advise_random_access(tensor)
        if block is not None and block.rows is not None:
            pieces = [rows for wanted in block.rows for rows in _rows_of(pieces, wanted)]
        whole = stack(pieces)
        return whole if block is None else whole.block(Block(columns=block.columns))

    def tensors(self, name: str) -> Iterator[LocatedTensor]:
        for part in self.parts[name]:
            for tensor in part.read().parts.values():
                yield LocatedTensor(part.location, tensor)

    def verify(self) -> Iterator[Progress]:
        """Compare the hashes that the Hub or S3 lists, for files that were downloaded from there."""
        damaged, done, total = {}, 0, sum(file.stat().st_size for file in self.files)
        for file in self.files:
            checksum = downloaded_checksum(file)
            if checksum is None or not can_compute(checksum.algorithm):
                raise UsageError(
                    f"{file.name}: no hash of it is known to compare with.",
                    f"A converted checkpoint records hashes: gptfast convert {shlex.quote(str(self.path))}",
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
    """The hint to download the missing config.json into the folder."""
    target = shlex.quote(str(folder))
    return f"Put its {CONFIG_FILE} there: gptfast download org/name --include {CONFIG_FILE} --local-dir {target}"


def tensor_part(shard: Shard, tensor: str) -> WeightPart:
    """A whole tensor of a file."""
    info = shard.tensors[tensor]
    outline = plain(torch.empty(info.shape, dtype=DTYPES[info.dtype], device="meta"))
    return WeightPart(f"{shard.path.name}: {tensor}", outline, lambda: plain(shard.tensor(tensor)))


def slice_rows(part: WeightPart, rows: slice) -> WeightPart:
    """A range of rows of a part."""
    return replace(part, outline=part.outline.row_block(rows), read=lambda: part.read().row_block(rows))


def concat_parts(parts: Sequence[WeightPart], axis: int) -> WeightPart:
    """Plain matrices side by side along an axis, with the location of the first; CorruptError if they do not fit."""
    first, like = parts[0], _tensor(parts[0].outline)
    for part in parts:
        tensor = _tensor(part.outline)
        is_alike = tensor.dtype == like.dtype and _without(part.shape, axis) == _without(first.shape, axis)
        if len(part.shape) != 2 or not is_alike:
            raise CorruptError(
                f"{part.location}: is {tensor.dtype} {list(part.shape)}, which does not fit {like.dtype} "
                f"{list(first.shape)} of {first.location}",
                "The files belong to different models: fetch all of them again.",
            )

    def joined(weights: Iterator[Weight]) -> Weight:
        return plain(torch.cat(list(map(_tensor, weights)), dim=axis))

    outline = joined(part.outline for part in parts)
    return replace(first, outline=outline, read=lambda: joined(part.read() for part in parts))


def permute_rope_rows(part: WeightPart, head_dim: int) -> WeightPart:
    """Permute query or key rows from interleaved RoPE pairs to pairs half a head apart.

    Row 2i of a head becomes row i, and row 2i + 1 row i + head_dim / 2: from Meta's order (Su et al. 2021) to that of
    transformers, which is ours. Queries and keys are permuted alike, so their products stay the same.
    """
    return replace(part, read=lambda: plain(_permute_rope_rows(_tensor(part.read()), head_dim)))


def check_parts(config: ModelConfig, parts: Mapping[str, Sequence[WeightPart]], config_source: str) -> None:
    """Raise CorruptError if a shape contradicts the config, UsageError if a dtype is not floating point."""
    for weight, shape in weight_shapes(config).items():
        for part, n_rows in zip(parts[weight], part_rows(config, weight, n_parts=len(parts[weight])), strict=True):
            wanted = (n_rows or shape[0], *shape[1:])
            if part.shape != wanted:
                raise CorruptError(
                    f"{part.location}: shape is {list(part.shape)}, and {config_source} makes it {list(wanted)}",
                    f"{config_source} and the weights belong to different models: fetch all of it again.",
                )
            if part.outline.scheme == PLAIN and (dtype := _tensor(part.outline).dtype) not in _FLOATING:
                known = ", ".join(map(dtype_name, _FLOATING))
                raise UsageError(f"{part.location}: dtype {dtype_name(dtype)} is none of {known}.")


def _without(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return shape[:axis] + shape[axis + 1 :]


def _tensor(weight: Weight) -> Tensor:
    """The only part of a plain weight."""
    (tensor,) = weight.parts.values()
    return tensor


def _rows_of(pieces: Sequence[Weight], wanted: slice) -> Iterator[Weight]:
    """A range of rows of weights that are stacked along their rows, as views."""
    first = 0
    for piece in pieces:
        rows = slice(max(0, wanted.start - first), max(0, min(piece.shape[0], wanted.stop - first)))
        if rows.start < rows.stop:
            yield piece.row_block(rows)
        first += piece.shape[0]


def _permute_rope_rows(rows: Tensor, head_dim: int) -> Tensor:
    pairs = rows.view(-1, head_dim // 2, 2, rows.shape[-1])  # [heads, head_dim / 2, 2, dim]
    return pairs.transpose(1, 2).reshape(rows.shape)


def part_rows(config: ModelConfig, weight: str, *, n_parts: int) -> tuple[int | None, ...]:
    """Number of rows of each part of a weight; None for a weight of one part."""
    match weight.rpartition(".")[2].removesuffix("_bias"), n_parts:
        case "qkv", 3:
            attention = config.layers[layer_of(weight)].attention
            return attention.q_dim, attention.kv_dim, attention.kv_dim
        case "gate_up", 2:
            n_features = config.layers[layer_of(weight)].feed_forward.dim
            return n_features, n_features
        case _:
            return (None,)


EMBEDDING, NORM, HEAD = "tok_embeddings.weight", "norm.weight", "output.weight"
QUERY, KEY, VALUE = (f"attention.{name}.weight" for name in ("wq", "wk", "wv"))
GATE, UP = (f"feed_forward.{name}.weight" for name in ("w1", "w3"))
OUTPUT, DOWN = "attention.wo.weight", "feed_forward.w2.weight"
ATTENTION_NORM, FFN_NORM = "attention_norm.weight", "ffn_norm.weight"

IN_LAYER = (ATTENTION_NORM, QUERY, KEY, VALUE, OUTPUT, FFN_NORM, GATE, UP, DOWN)


_LLAMA_WEIGHTS = frozenset(("attention_norm", "qkv", "attention_output", "ffn_norm", "gate_up", "down"))


def check_meta_layout(config: ModelConfig, program: str) -> None:
    """Raise UsageError if a config.json declares what files of Meta's layout, as `program` writes it, cannot hold.

    They are known of Llama, and of models that differ from it in numbers only.
    """
    layers = [name.rpartition(".")[2] for name in weight_shapes(config) if "." in name]
    beyond = next((name for name in layers if name not in _LLAMA_WEIGHTS), None)
    if beyond is not None or any(kind.attention.rope and kind.attention.rope.rotary_dim for kind in config.kinds):
        what = "biases" if beyond is not None and beyond.endswith("_bias") else beyond or "partly rotated heads"
        raise UsageError(f"{CONFIG_FILE}: declares {what}, which {program} lacks.", "Convert the original model.")


def meta_names(config: ModelConfig) -> list[str]:
    """Names of all tensors of a model of this shape, in Meta's naming."""
    layers = [f"layers.{layer}.{name}" for layer in range(config.n_layers) for name in IN_LAYER]
    return [EMBEDDING, *layers, NORM, *([] if config.tied_embeddings else [HEAD])]


def meta_parts(config: ModelConfig, tensor: Callable[[str], WeightPart]) -> dict[str, tuple[WeightPart, ...]]:
    """The parts of each of our weights; `tensor` returns one of Meta's tensors by its name."""
    parts: dict[str, tuple[WeightPart, ...]] = {"embedding": (tensor(EMBEDDING),)}
    head_dim = config.layers[0].attention.head_dim
    for layer in (f"layers.{layer}." for layer in range(config.n_layers)):
        parts[f"{layer}attention_norm"] = (tensor(layer + ATTENTION_NORM),)
        parts[f"{layer}qkv"] = (
            permute_rope_rows(tensor(layer + QUERY), head_dim),
            permute_rope_rows(tensor(layer + KEY), head_dim),
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
