"""A GGUF file, or all files of a split model, as llama.cpp writes them: mapped, and blocks read as they are.

Metadata becomes the config.json of the model's family, and ggml's types the grouped scheme. Rows of queries and keys,
where their RoPE pairs are interleaved, are moved in whatever type they are stored, and norms with an offset have it
taken off. Source: https://github.com/ggml-org/llama.cpp, gguf-py/gguf/constants.py and conversion/.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from gptfast_cli.core.checkpoints.foreign import ForeignCheckpoint, WeightPart, check_none, check_parts
from gptfast_cli.core.checkpoints.ggml_blocks import ggml_weight
from gptfast_cli.core.checkpoints.gguf_files import first_file, models_in, scheme_of
from gptfast_cli.core.checkpoints.shard import Shard, TensorInfo
from gptfast_cli.core.config import ModelConfig
from gptfast_cli.core.errors import CorruptError, UsageError
from gptfast_cli.core.families import GgufLayout, gguf_model, read_gguf_model
from gptfast_cli.core.fields import DAMAGED
from gptfast_cli.core.gguf import PLAIN_TYPES, SUFFIX, GgufFile, GgufTensor, parse_shard_name, read_gguf, starts_as_gguf
from gptfast_cli.core.models.weights import layer_of, weight_shapes
from gptfast_cli.core.schemes import Weight
from gptfast_cli.core.schemes.plain import NAME as PLAIN
from gptfast_cli.core.schemes.plain import plain

_CONFIG_SOURCE: Final = "its metadata"


class Gguf:
    """Source of GGUF files."""

    looks_for = f"a {SUFFIX} file"
    rank = 60

    def holds(self, path: Path) -> bool:
        if path.is_dir():
            return bool(models_in(path))
        return path.suffix == SUFFIX or starts_as_gguf(path)  # some programs name files by their hashes

    def open(self, path: Path, *, allow_pickle: bool) -> ForeignCheckpoint:  # noqa: ARG002  # there are no pickles
        stored = _read(first_file(path))
        model, layout = read_gguf_model(gguf_model(stored.first.metadata, stored.shapes(), stored.vector))
        names = _tensor_names(model.config, layout, stored)
        parts = {weight: tuple(_parts(stored, model.config, layout, weight, names[weight])) for weight in names}
        check_parts(model.config, parts, _CONFIG_SOURCE)
        scheme = scheme_of(stored.first.metadata, (tensor for _, tensor in stored.tensors.values()))
        file = stored.first.path
        made_in = None if scheme == PLAIN else torch.bfloat16  # no key says it; nearly all models are
        return ForeignCheckpoint(
            file, file.stem, model.config, _CONFIG_SOURCE, stored.files, parts, scheme=scheme, made_in=made_in
        )


@dataclass(frozen=True, slots=True)
class _Stored:
    """The header of the first file, all files, and where each tensor is."""

    first: GgufFile
    files: tuple[Path, ...]
    tensors: Mapping[str, tuple[Path, GgufTensor]]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of every tensor."""
        return {name: tensor.shape for name, (_, tensor) in self.tensors.items()}

    def raw(self, name: str) -> Tensor:
        """The mapped bytes of a tensor, [rows, row_bytes] or [row_bytes] uint8."""
        path, tensor = self.tensors[name]
        info = TensorInfo("U8", (tensor.end - tensor.start,), tensor.start, tensor.end)
        mapped = Shard(path, {name: info}).tensor(name)
        return mapped if len(tensor.shape) == 1 else mapped.view(tensor.shape[0], -1)

    def vector(self, name: str) -> list[float]:
        """The numbers of a small tensor. Raises CorruptError if it is a large one or quantized."""
        path, tensor = self.tensors[name]
        if len(tensor.shape) != 1 or tensor.shape[0] > _MOST_NUMBERS or tensor.type.name not in PLAIN_TYPES:
            raise CorruptError(f"{path.name}: {name}: no vector of numbers", DAMAGED)
        (values,) = ggml_weight(tensor.type, self.raw(name), *tensor.shape).parts.values()
        return [float(value) for value in values]


_MOST_NUMBERS: Final = 1 << 16


def _read(first: Path) -> _Stored:
    """All headers. Raises CorruptError if files of a split model are missing or do not belong together."""
    name = parse_shard_name(first.name)
    paths = (first,) if name is None else tuple(first.with_name(sibling) for sibling in name.siblings())
    missing = {path.name for path in paths if not path.is_file()}
    check_none(str(first.parent), missing, f"missing of {len(paths)} files of a model")
    headers = [read_gguf(path) for path in paths]
    tensors: dict[str, tuple[Path, GgufTensor]] = {}
    for header in headers:
        check_none(header.path.name, tensors.keys() & header.tensors.keys(), "in another file of the model, too")
        tensors |= {tensor: (header.path, info) for tensor, info in header.tensors.items()}
    n_tensors = headers[0].metadata.values.get("split.tensors.count", len(tensors))
    if n_tensors != len(tensors):
        raise CorruptError(
            f"{first.name}: split.tensors.count: {n_tensors!r:.40}, but there are {len(tensors)}", DAMAGED
        )
    return _Stored(headers[0], paths, tensors)


_NAMES: Final = {
    "embedding": ("token_embd",),
    "norm": ("output_norm",),
    "head": ("output",),
    "attention_norm": ("attn_norm",),
    "qkv": ("attn_q", "attn_k", "attn_v"),
    "q_norm": ("attn_q_norm",),
    "k_norm": ("attn_k_norm",),
    "attention_output": ("attn_output",),
    "attention_output_norm": ("post_attention_norm",),
    "ffn_norm": ("ffn_norm",),
    "gate_up": ("ffn_gate", "ffn_up"),
    "down": ("ffn_down",),
    "ffn_output_norm": ("post_ffw_norm",),
}
_FUSED: Final = {"qkv": "attn_qkv", "gate_up": "ffn_up"}  # where a file has the former ones in one tensor
_ROPE_TENSORS: Final = frozenset(("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"))


def _tensor_names(config: ModelConfig, layout: GgufLayout, stored: _Stored) -> dict[str, tuple[str, ...]]:
    """The tensors of each weight, checked to be all that the file has."""
    found = {weight: _names_of(weight, layout, stored) for weight in weight_shapes(config)}
    expected = {name for names in found.values() for name in names}
    file = stored.first.path.name
    check_none(file, expected - stored.tensors.keys(), f"missing, but required by {_CONFIG_SOURCE}")
    extra = sorted(stored.tensors.keys() - expected - _ROPE_TENSORS)
    if extra:
        raise UsageError(
            f"{file}: {extra[0]}: a tensor that gptfast does not know of this architecture"
            + (f" ({len(extra)} in all)." if len(extra) > 1 else "."),
            "Take the original model in safetensors form: gptfast download org/name",
        )
    return found


def _names_of(weight: str, layout: GgufLayout, stored: _Stored) -> tuple[str, ...]:
    own = weight.rpartition(".")[2]
    base = own.removesuffix("_bias")
    suffix = "weight" if base == own else "bias"
    prefix = "" if "." not in weight else f"blk.{layer_of(weight)}."
    names = (layout.names[base],) if base in layout.names else _NAMES[base]
    fused = _FUSED.get(base)
    if fused is not None and f"{prefix}{names[0]}.{suffix}" not in stored.tensors:
        names = (fused,)
    return tuple(f"{prefix}{name}.{suffix}" for name in names)


def _parts(
    stored: _Stored, config: ModelConfig, layout: GgufLayout, weight: str, names: tuple[str, ...]
) -> Iterator[WeightPart]:
    is_norm = weight.rpartition(".")[2].endswith("norm")
    for number, name in enumerate(names):
        path, tensor = stored.tensors[name]
        if len(tensor.shape) > 2:
            raise CorruptError(f"{path.name}: {name}: shape {list(tensor.shape)} is that of no matrix", DAMAGED)
        rows = None
        if layout.has_pairs and ".qkv" in weight:
            rows = _unpaired(config, weight, tensor.shape[0], number if len(names) > 1 else None)
        part = _Part(stored, name, rows, config.norm_offset if is_norm else 0.0)
        location = f"{path.name}: {name}"
        try:
            outline = ggml_weight(tensor.type, _meta(tensor), tensor.shape[-1])
        except UsageError as error:
            raise UsageError(f"{location}: {error.message}", error.hint) from error
        yield WeightPart(location, outline, part.read)


@dataclass(frozen=True, slots=True)
class _Part:
    """How a tensor is read: its rows in another order, or without the offset of a norm."""

    stored: _Stored
    name: str
    rows: Tensor | None
    offset: float

    def read(self) -> Weight:
        raw, (_, tensor) = self.stored.raw(self.name), self.stored.tensors[self.name]
        if self.rows is not None:
            raw = torch.unflatten(raw, 0, (tensor.shape[0], -1)) if raw.ndim == 1 else raw
            raw = raw[self.rows].view(-1) if len(tensor.shape) == 1 else raw[self.rows]
        weight = ggml_weight(tensor.type, raw, tensor.shape[-1])
        if not self.offset:
            return weight
        (norm,) = weight.parts.values()
        return plain(norm - self.offset)


def _meta(tensor: GgufTensor) -> Tensor:
    """The bytes of a tensor on the meta device."""
    n_bytes = tensor.end - tensor.start
    shape = (n_bytes,) if len(tensor.shape) == 1 else (tensor.shape[0], n_bytes // tensor.shape[0])
    return torch.empty(shape, dtype=torch.uint8, device="meta")


def _unpaired(config: ModelConfig, weight: str, n_rows: int, number: int | None) -> Tensor | None:
    """Stored rows in our order, of queries (0), keys (1), values (2) or all (None), whose RoPE pairs are interleaved.

    Row 2i of a head becomes row i, and row 2i + 1 row i + head_dim / 2.
    """
    attention = config.layers[layer_of(weight)].attention
    first_value = attention.q_dim + attention.kv_dim if number is None else (n_rows, n_rows, 0)[number]
    if not first_value or n_rows % attention.head_dim or attention.head_dim % 2:
        return None  # values, or a shape that is refused
    rows = torch.arange(n_rows)
    heads = torch.unflatten(rows[:first_value], 0, (-1, attention.head_dim // 2, 2))
    return torch.cat([heads.transpose(1, 2).flatten(), rows[first_value:]])


PLUG = Gguf()
