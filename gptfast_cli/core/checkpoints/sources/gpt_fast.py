"""gpt-fast's `model.pth`, which lies beside the `config.json` of the Hugging Face folder that it was made from.

It has Meta's names and Meta's order of RoPE pairs, and query, key and value rows in one tensor, `wqkv`. The file says
neither how many heads a layer has nor how it was trained, and gpt-fast knew that from the folder's name: config.json
says it here. Source: https://github.com/meta-pytorch/gpt-fast, scripts/convert_hf_checkpoint.py.
"""

from pathlib import Path

from gptfast_cli.core.checkpoints.foreign import (
    CONFIG_FILE,
    EMBEDDING,
    HEAD,
    KEY,
    QUERY,
    VALUE,
    ForeignCheckpoint,
    WeightPart,
    check_parts,
    fetch_config,
    meta_names,
    meta_parts,
    refuse,
    some_rows,
    stored_part,
)
from gptfast_cli.core.checkpoints.pickles import open_pickle, refuse_pickle
from gptfast_cli.core.checkpoints.shard import Shard
from gptfast_cli.core.checkpoints.sources.huggingface import check_identical, read_config
from gptfast_cli.core.config import ModelConfig
from gptfast_cli.core.errors import UsageError

_FILE = "model.pth"
_FUSED = "attention.wqkv.weight"


class GptFast:
    """Files as gpt-fast's converter writes them; see Source."""

    looks_for = _FILE
    rank = 40

    def holds(self, path: Path) -> bool:
        return _file(path).is_file()

    def open(self, path: Path, *, allow_pickle: bool) -> ForeignCheckpoint:
        file = _file(path)
        if not allow_pickle:
            raise refuse_pickle(file, path)
        if not (file.parent / CONFIG_FILE).is_file():
            raise UsageError(
                f"{_FILE}: does not say how many heads the model has, nor its RoPE, context and norm_eps.",
                fetch_config(file.parent),
            )
        _, config = read_config(file.parent)
        _refuse_biases(config)
        shard = open_pickle(file)
        _check_names(config, shard)
        parts = meta_parts(config, lambda name: _part(config, shard, name))
        check_parts(config, parts, CONFIG_FILE)
        return ForeignCheckpoint(file.parent, file.parent.name, config, CONFIG_FILE, (file,), parts)


def _file(path: Path) -> Path:
    return path if path.name == _FILE else path / _FILE


def _refuse_biases(config: ModelConfig) -> None:
    if config.attention_bias or config.ffn_bias:
        raise UsageError(f"{CONFIG_FILE}: has biases, and gpt-fast has no such models.", "Convert the original model.")


def _check_names(config: ModelConfig, shard: Shard) -> None:
    file, expected = shard.path.name, {_stored_name(shard, name) for name in meta_names(config)}
    quantised = {name for name in shard.tensors if name.endswith((".scales", ".scales_and_zeros"))}
    if quantised:
        raise UsageError(
            f"{file}: is quantised by gpt-fast ({min(quantised)}), which cannot be undone.",
            "Convert the model.pth that it was made from, and quantise that: gptfast quantize",
        )
    refuse(file, expected - set(shard.tensors), f"missing, and the shape in {CONFIG_FILE} needs it")
    extra = set(shard.tensors) - expected
    if config.tied_embeddings and HEAD in extra:
        check_identical(shard, HEAD, shard, EMBEDDING)
        extra.remove(HEAD)
    refuse(file, extra, "none of this model's tensors")


def _stored_name(shard: Shard, name: str) -> str:
    """The tensor that holds a tensor of Meta's: the fused one, where the file has it."""
    layer, _, in_layer = name.partition(".attention.")
    fused = f"{layer}.{_FUSED}"
    return fused if f"attention.{in_layer}" in (QUERY, KEY, VALUE) and fused in shard.tensors else name


def _part(config: ModelConfig, shard: Shard, name: str) -> WeightPart:
    stored = _stored_name(shard, name)
    part = stored_part(shard, stored)
    if stored == name:
        return part
    ends = {QUERY: (0, config.q_dim), KEY: (config.q_dim, config.q_dim + config.kv_dim)}
    start, end = ends.get("attention." + name.partition(".attention.")[2], (config.q_dim + config.kv_dim, None))
    return some_rows(part, slice(start, end))


PLUG = GptFast()
