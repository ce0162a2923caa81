"""Meta's own files: `params.json` beside `consolidated.00.pth`, `consolidated.01.pth` and so on.

Each file is what one process of a tensor-parallel run holds. Projections into the heads and the feed-forward are cut
by rows, those out of them by columns, norms are the same in each; the embedding is cut by columns up to Llama 2 and by
rows in Llama 3, which its shape tells. What params.json leaves out is what Meta's program takes for it, and a
config.json beside it, of the same model, says more. Source: https://github.com/meta-llama/llama, llama/model.py.
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
    check_parts,
    fetch_config,
    joined,
    meta_names,
    meta_parts,
    refuse,
    stored_part,
)
from gptfast_cli.core.checkpoints.pickles import open_pickle, refuse_pickle
from gptfast_cli.core.checkpoints.shard import Shard
from gptfast_cli.core.checkpoints.sources.huggingface import check_identical, read_config
from gptfast_cli.core.config import ModelConfig, RopeConfig
from gptfast_cli.core.errors import CorruptError, UsageError
from gptfast_cli.core.fields import Fields, read_fields

PARAMS_FILE = "params.json"

_NAME = re.compile(r"consolidated\.(\d\d)\.pth")
_BUFFER = "rope.freqs"  # follows from the config
_MAX_CONTEXT = 2048  # max_seq_len of Meta's ModelArgs, of Llama 1, 2 and 3 alike
_LACKED = {"moe": "experts", "sliding_window": "sliding-window attention", "quantization_args": "its quantised weights"}


class Meta:
    """Files as Meta hands out Llama; see Source."""

    looks_for = f"{PARAMS_FILE} with consolidated.00.pth"
    rank = 30

    def holds(self, path: Path) -> bool:
        return _folder(path) is not None

    def open(self, path: Path, *, allow_pickle: bool) -> ForeignCheckpoint:
        folder = _folder(path)
        assert folder is not None, path
        files = _files(folder)
        if not allow_pickle:
            raise refuse_pickle(files[0], path)
        shards = [open_pickle(file) for file in files]
        remarks: tuple[str, ...] = ()
        if (folder / CONFIG_FILE).is_file():
            said_by, config = CONFIG_FILE, read_config(folder)[1]
            _refuse_biases(config)
        else:
            said_by, fields = PARAMS_FILE, _params(folder)
            config = _config(fields, shards)
            if "max_seq_len" not in fields:
                remarks = (_remark(config),)
        _check_names(config, shards, said_by)
        parts = meta_parts(config, lambda name: _part(config, shards, name))
        check_parts(config, parts, said_by)
        return ForeignCheckpoint(folder, folder.name, config, said_by, tuple(files), parts, remarks)


def _folder(path: Path) -> Path | None:
    folder = path.parent if _NAME.fullmatch(path.name) and path.is_file() else path
    return folder if (folder / "consolidated.00.pth").is_file() else None


def _files(folder: Path) -> list[Path]:
    """The files in their order; CorruptError where there is a gap between them."""
    files = sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name))
    wanted = {f"consolidated.{number:02}.pth" for number in range(len(files))}
    refuse(str(folder), wanted - {file.name for file in files}, "missing, and a file of a higher number is there")
    return files


def _params(folder: Path) -> Fields:
    if not (folder / PARAMS_FILE).is_file():
        raise UsageError(
            f"{folder}: has Meta's weights, and no {PARAMS_FILE} that says how many heads the model has.",
            fetch_config(folder),
        )
    fields = read_fields(folder / PARAMS_FILE)
    for name, what in _LACKED.items():
        if name in fields:
            raise UsageError(f"{PARAMS_FILE}: {name}: gptfast does not have {what} for these files.")
    if "use_scaled_rope" in fields and fields.flag("use_scaled_rope"):
        raise UsageError(
            f"{PARAMS_FILE}: use_scaled_rope is on, and by how much RoPE is stretched is not said.",
            fetch_config(folder),
        )
    return fields


def _config(fields: Fields, shards: Sequence[Shard]) -> ModelConfig:
    """The shape: what params.json says, and what only the tensors tell: the vocabulary, the feed-forward's width."""
    dim, n_heads = fields.integer("dim"), fields.integer("n_heads")
    n_kv_heads = fields.integer("n_kv_heads", n_heads)
    if n_heads % n_kv_heads:
        raise fields.corrupt("n_kv_heads", f"{n_heads} query heads cannot share {n_kv_heads}")
    if "head_dim" not in fields and dim % n_heads:
        raise fields.corrupt("n_heads", f"dim {dim} cannot be cut into {n_heads} heads")
    head_dim = fields.integer("head_dim", dim // n_heads)
    if head_dim % 2:
        raise fields.corrupt("head_dim", f"{head_dim} is not an even size: RoPE rotates pairs")
    vocab_size = _n_rows(shards, EMBEDDING, by_columns=_is_cut_by_columns(shards, dim))
    declared = fields.integer("vocab_size", -1, minimum=-1)
    if declared not in (-1, vocab_size):
        raise fields.corrupt("vocab_size", f"is {declared}, and {EMBEDDING} has {vocab_size} rows")
    return ModelConfig(
        family="llama",
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
    )


def _remark(config: ModelConfig) -> str:
    return (
        f"{PARAMS_FILE} does not say how long a context the model was trained for: {config.max_context:,} tokens, as "
        f'in Meta\'s program. "max_seq_len" in it, or a {CONFIG_FILE} beside it, says otherwise.'
    )


def _refuse_biases(config: ModelConfig) -> None:
    if config.attention_bias or config.ffn_bias:
        raise UsageError(f"{CONFIG_FILE}: has biases, and Meta has no such models.", "Convert the original model.")


def _n_rows(shards: Sequence[Shard], name: str, *, by_columns: bool) -> int:
    shapes = [shard.tensors[name].shape for shard in shards if name in shard.tensors]
    if len(shapes) < len(shards) or not all(len(shape) == 2 for shape in shapes):
        raise CorruptError(f"{shards[0].path.name}: {name}: missing, or no matrix", FETCH_AGAIN)
    return shapes[0][0] if by_columns else sum(shape[0] for shape in shapes)


def _is_cut_by_columns(shards: Sequence[Shard], dim: int) -> bool:
    stored = shards[0].tensors.get(EMBEDDING)
    return stored is not None and len(shards) > 1 and stored.shape[-1:] != (dim,)


def _check_names(config: ModelConfig, shards: Sequence[Shard], said_by: str) -> None:
    expected = set(meta_names(config))
    for shard in shards:
        refuse(shard.path.name, expected - set(shard.tensors), f"missing, and the shape in {said_by} needs it")
        extra = set(shard.tensors) - expected - {_BUFFER}
        if config.tied_embeddings and HEAD in extra:
            check_identical(shard, HEAD, shard, EMBEDDING)
            extra.remove(HEAD)
        refuse(shard.path.name, extra, "none of this model's tensors")


def _part(config: ModelConfig, shards: Sequence[Shard], name: str) -> WeightPart:
    parts = [stored_part(shard, name) for shard in shards]
    if len(parts) == 1 or name.endswith((ATTENTION_NORM, FFN_NORM)) or name == NORM:
        return parts[0]
    by_columns = name.endswith((OUTPUT, DOWN)) or (name == EMBEDDING and _is_cut_by_columns(shards, config.dim))
    return joined(parts, axis=1 if by_columns else 0)


PLUG = Meta()
