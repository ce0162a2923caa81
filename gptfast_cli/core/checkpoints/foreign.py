"""A model in the files of another program: which of their tensors make each weight of ours, and how they are read.

Nothing is read before it is asked for, and what is brought into our order is a copy of one weight and no more.
"""

import math
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from gptfast_cli.core.checkpoints.checkpoint import Piece
from gptfast_cli.core.checkpoints.download_source import downloaded_checksum, fetch_command
from gptfast_cli.core.checkpoints.shard import DTYPES, Shard, touched_in_part
from gptfast_cli.core.config import ModelConfig
from gptfast_cli.core.digest import can_compute
from gptfast_cli.core.errors import CorruptError, UsageError
from gptfast_cli.core.events import Progress
from gptfast_cli.core.formats import Block, Weight
from gptfast_cli.core.formats.plain import NAME as PLAIN
from gptfast_cli.core.formats.plain import plain
from gptfast_cli.core.model.weights import weight_shapes

CONFIG_FILE = "config.json"

_FLOATING = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True, slots=True)
class Part:
    """Some rows of a weight: their place, `file: tensor`, what they are, and how to read them in our order."""

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
    """A model that another program wrote; see Checkpoint.

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
    parts: Mapping[str, tuple[Part, ...]]
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
        """See Checkpoint."""
        return PLAIN

    @property
    def stored_as(self) -> str:
        """See Checkpoint."""
        return PLAIN

    @property
    def n_bytes(self) -> int:
        """See Checkpoint."""
        return sum(part.n_params * part.dtype.itemsize for part in self._all())

    @property
    def n_params(self) -> int:
        """See Checkpoint."""
        return sum(part.n_params for part in self._all())

    @property
    def special_tokens(self) -> None:
        """None: the folder's tokenizer files say which tokens are special."""
        return

    @property
    def calibration(self) -> None:
        """None: other programs do not tell."""
        return

    def dtypes(self, name: str) -> tuple[torch.dtype, ...]:
        """See Checkpoint."""
        return tuple(part.dtype for part in self.parts[name])

    def weight(self, name: str, block: Block | None = None) -> Weight:
        """See Checkpoint."""
        tensors = [piece.tensor for piece in self.pieces(name)]
        if block is not None:
            tensors = list(map(touched_in_part, tensors))
        if block is not None and block.rows is not None:
            tensors = [rows for wanted in block.rows for rows in _rows_of(tensors, wanted)]
        whole = plain(tensors[0] if len(tensors) == 1 else torch.cat(tensors))
        return whole if block is None else whole.block(Block(columns=block.columns))

    def pieces(self, name: str) -> Iterator[Piece]:
        """See Checkpoint."""
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

    def _all(self) -> Iterator[Part]:
        return (part for parts in self.parts.values() for part in parts)


def fetch_config(folder: Path) -> str:
    """The hint that a config.json beside the weights would say what they do not."""
    place = shlex.quote(str(folder))
    return f"Put its {CONFIG_FILE} there: gptfast download org/name --include {CONFIG_FILE} --local-dir {place}"


def stored_part(shard: Shard, tensor: str) -> Part:
    """A tensor of a file as it stands there."""
    stored = shard.tensors[tensor]
    place = f"{shard.path.name}: {tensor}"
    return Part(place, DTYPES[stored.dtype], stored.shape, lambda: shard.tensor(tensor))


def some_rows(part: Part, rows: slice) -> Part:
    """Some rows of a part."""
    n_rows = len(range(*rows.indices(part.shape[0])))
    return replace(part, shape=(n_rows, *part.shape[1:]), read=lambda: part.read()[rows])


def joined(parts: Sequence[Part], axis: int) -> Part:
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


def half_split(part: Part, head_dim: int) -> Part:
    """Query or key rows whose RoPE pairs stand side by side, as rows whose pairs stand half a head apart.

    Row 2i of a head becomes row i, and row 2i + 1 row i + head_dim / 2: Meta's form, of Su et al. 2021, becomes that
    of transformers, which is ours. Queries and keys change alike, so that their products stay what they were.
    """
    return replace(part, read=lambda: _half_split(part.read(), head_dim))


def check_parts(config: ModelConfig, parts: Mapping[str, Sequence[Part]], said_by: str) -> None:
    """Raise CorruptError where a shape is not what `said_by` makes it, UsageError where a dtype is not floating."""
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
