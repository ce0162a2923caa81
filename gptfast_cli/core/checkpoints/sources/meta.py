"""Meta's own files: `params.json` beside `consolidated.00.pth`, `consolidated.01.pth` and so on.

Each file is the shard of one tensor-parallel rank. QKV, gate and up are sharded by rows, output and down by columns,
norms are replicated; the embedding is sharded by columns up to Llama 2 and by rows in Llama 3, as its shape shows.
Missing values of params.json are the defaults of Meta's code; a config.json beside it takes precedence.
Source: https://github.com/meta-llama/llama, llama/model.py.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from gptfast_cli.core.checkpoints.downloads import FETCH_AGAIN
from gptfast_cli.core.checkpoints.foreign import (
    ATTENTION_NORM,
    CONFIG_FILE,
    DOWN,
    EMBEDDING,
    FFN_NORM,
    GATE,
    HEAD,
    NORM,
    OUTPUT,
    ForeignCheckpoint,
    WeightPart,
    check_meta_layout,
    check_none,
    check_parts,
    concat_parts,
    fetch_config,
    meta_names,
    meta_parts,
    tensor_part,
)
from gptfast_cli.core.checkpoints.pickles import open_pickle, pickle_refused
from gptfast_cli.core.checkpoints.shard import Shard
from gptfast_cli.core.checkpoints.sources.huggingface import check_identical, read_config
from gptfast_cli.core.config import LlamaSizes, ModelConfig, RopeConfig
from gptfast_cli.core.errors import CorruptError, UsageError
from gptfast_cli.core.fields import Fields, read_fields

PARAMS_FILE = "params.json"

_NAME = re.compile(r"consolidated\.(\d\d)\.pth")
_BUFFER = "rope.freqs"  # computed from the config instead
_MAX_CONTEXT = 2048  # max_seq_len of Meta's ModelArgs, of Llama 1, 2 and 3 alike
_UNSUPPORTED = {"moe": "experts", "sliding_window": "sliding-window attention", "quantization_args": "quantization"}


class Meta:
    """Source of Llama checkpoints as Meta distributes them."""

    looks_for = f"{PARAMS_FILE} with consolidated.00.pth"
    rank = 30

    def holds(self, path: Path) -> bool:
        return _folder(path) is not None

    def open(self, path: Path, *, allow_pickle: bool) -> ForeignCheckpoint:
        folder = _folder(path)
        assert folder is not None, path
        files = _files(folder)
        if not allow_pickle:
            raise pickle_refused(files[0], path)
        shards = [open_pickle(file) for file in files]
        notes: tuple[str, ...] = ()
        if (folder / CONFIG_FILE).is_file():
            config_source, config = CONFIG_FILE, read_config(folder).config
            check_meta_layout(config, "Meta's format")
        else:
            config_source, fields = PARAMS_FILE, _params(folder)
            config = _config(fields, shards)
            if "max_seq_len" not in fields:
                notes = (_context_note(config),)
        _check_names(config, shards, config_source)
        parts = meta_parts(config, lambda name: _part(config, shards, name))
        check_parts(config, parts, config_source)
        return ForeignCheckpoint(folder, folder.name, config, config_source, tuple(files), parts, notes)


def _folder(path: Path) -> Path | None:
    folder = path.parent if _NAME.fullmatch(path.name) and path.is_file() else path
    return folder if (folder / "consolidated.00.pth").is_file() else None


def _files(folder: Path) -> list[Path]:
    """The files in order. Raises CorruptError if one is missing."""
    files = sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name))
    wanted = {f"consolidated.{number:02}.pth" for number in range(len(files))}
    check_none(str(folder), wanted - {file.name for file in files}, "missing, but there are files with higher numbers")
    return files


def _params(folder: Path) -> Fields:
    if not (folder / PARAMS_FILE).is_file():
        raise UsageError(
            f"{folder}: has Meta's weights but no {PARAMS_FILE}.",
            fetch_config(folder),
        )
    fields = read_fields(folder / PARAMS_FILE)
    for name, what in _UNSUPPORTED.items():
        if name in fields:
            raise UsageError(f"{PARAMS_FILE}: {name}: {what} is not supported for these files.")
    if "use_scaled_rope" in fields and fields.flag("use_scaled_rope"):
        raise UsageError(
            f"{PARAMS_FILE}: use_scaled_rope is set, but the factor of the RoPE scaling is not in the file.",
            fetch_config(folder),
        )
    return fields


def _config(fields: Fields, shards: Sequence[Shard]) -> ModelConfig:
    """The shape: from params.json, and from the tensors the sizes of the vocabulary and the feed-forward."""
    dim, n_heads = fields.integer("dim"), fields.integer("n_heads")
    n_kv_heads = fields.integer("n_kv_heads", n_heads)
    if n_heads % n_kv_heads:
        raise fields.corrupt("n_kv_heads", f"{n_heads} query heads cannot share {n_kv_heads}")
    if "head_dim" not in fields and dim % n_heads:
        raise fields.corrupt("n_heads", f"dim {dim} cannot be cut into {n_heads} heads")
    head_dim = fields.integer("head_dim", dim // n_heads)
    if head_dim % 2:
        raise fields.corrupt("head_dim", f"{head_dim} is not an even size: RoPE rotates pairs")
    vocab_size = _n_rows(shards, EMBEDDING, by_columns=_is_column_sharded(shards, dim))
    declared = fields.integer("vocab_size", -1, minimum=-1)
    if declared not in (-1, vocab_size):
        raise fields.corrupt("vocab_size", f"is {declared}, and {EMBEDDING} has {vocab_size} rows")
    return LlamaSizes(
        n_layers=fields.integer("n_layers", maximum=10_000),
        dim=dim,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        ffn_dim=_n_rows(shards, f"layers.0.{GATE}", by_columns=False),
        vocab_size=vocab_size,
        max_context=fields.integer("max_seq_len", _MAX_CONTEXT),
        norm_eps=fields.number("norm_eps", 1e-5),
        rope=RopeConfig(fields.number("rope_theta", 10_000.0)),
        tied_embeddings=HEAD not in shards[0].tensors,
    ).config()


def _context_note(config: ModelConfig) -> str:
    return (
        f"{PARAMS_FILE} has no context length: {config.max_context:,} tokens are assumed, the default of Meta's code. "
        f'Set "max_seq_len" in it, or put a {CONFIG_FILE} beside it, to change that.'
    )


def _n_rows(shards: Sequence[Shard], name: str, *, by_columns: bool) -> int:
    shapes = [shard.tensors[name].shape for shard in shards if name in shard.tensors]
    if len(shapes) < len(shards) or not all(len(shape) == 2 for shape in shapes):
        raise CorruptError(f"{shards[0].path.name}: {name}: missing, or no matrix", FETCH_AGAIN)
    return shapes[0][0] if by_columns else sum(shape[0] for shape in shapes)


def _is_column_sharded(shards: Sequence[Shard], dim: int) -> bool:
    stored = shards[0].tensors.get(EMBEDDING)
    return stored is not None and len(shards) > 1 and stored.shape[-1:] != (dim,)


def _check_names(config: ModelConfig, shards: Sequence[Shard], config_source: str) -> None:
    expected = set(meta_names(config))
    for shard in shards:
        check_none(shard.path.name, expected - set(shard.tensors), f"missing, but required by {config_source}")
        extra = set(shard.tensors) - expected - {_BUFFER}
        if config.tied_embeddings and HEAD in extra:
            check_identical(shard, HEAD, shard, EMBEDDING)
            extra.remove(HEAD)
        check_none(shard.path.name, extra, "not a tensor of this model")


def _part(config: ModelConfig, shards: Sequence[Shard], name: str) -> WeightPart:
    parts = [tensor_part(shard, name) for shard in shards]
    if len(parts) == 1 or name.endswith((ATTENTION_NORM, FFN_NORM)) or name == NORM:
        return parts[0]
    by_columns = name.endswith((OUTPUT, DOWN)) or (name == EMBEDDING and _is_column_sharded(shards, config.dim))
    return concat_parts(parts, axis=1 if by_columns else 0)


PLUG = Meta()
