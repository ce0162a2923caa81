"""gpt-fast's `model.pth`, beside the `config.json` of the Hugging Face folder that it was converted from.

It has Meta's names and interleaved RoPE pairs, and query, key and value rows in one tensor, `wqkv`. The file does not
contain the config (gpt-fast infers it from the folder's name), hence config.json.
Source: https://github.com/meta-pytorch/gpt-fast, scripts/convert_hf_checkpoint.py.
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
    check_meta_layout,
    check_none,
    check_parts,
    fetch_config,
    meta_names,
    meta_parts,
    slice_rows,
    tensor_part,
)
from gptfast_cli.core.checkpoints.pickles import open_pickle, pickle_refused
from gptfast_cli.core.checkpoints.shard import Shard
from gptfast_cli.core.checkpoints.sources.huggingface import check_identical, read_config
from gptfast_cli.core.config import ModelConfig
from gptfast_cli.core.errors import UsageError

_FILE = "model.pth"
_FUSED = "attention.wqkv.weight"


class GptFast:
    """Source of gpt-fast model files."""

    looks_for = _FILE
    rank = 40

    def holds(self, path: Path) -> bool:
        return _file(path).is_file()

    def open(self, path: Path, *, allow_pickle: bool) -> ForeignCheckpoint:
        file = _file(path)
        if not allow_pickle:
            raise pickle_refused(file, path)
        if not (file.parent / CONFIG_FILE).is_file():
            raise UsageError(
                f"{_FILE}: does not contain the number of heads, RoPE, context length and norm_eps.",
                fetch_config(file.parent),
            )
        config = read_config(file.parent).config
        check_meta_layout(config, "gpt-fast")
        shard = open_pickle(file)
        _check_names(config, shard)
        parts = meta_parts(config, lambda name: _part(config, shard, name))
        check_parts(config, parts, CONFIG_FILE)
        return ForeignCheckpoint(file.parent, file.parent.name, config, CONFIG_FILE, (file,), parts)


def _file(path: Path) -> Path:
    return path if path.name == _FILE else path / _FILE


def _check_names(config: ModelConfig, shard: Shard) -> None:
    file, expected = shard.path.name, {_stored_name(shard, name) for name in meta_names(config)}
    quantized = {name for name in shard.tensors if name.endswith((".scales", ".scales_and_zeros"))}
    if quantized:
        raise UsageError(
            f"{file}: is quantized by gpt-fast ({min(quantized)}), which is not supported.",
            "Convert the original model.pth, and quantize that: gptfast quantize",
        )
    check_none(file, expected - set(shard.tensors), f"missing, but required by {CONFIG_FILE}")
    extra = set(shard.tensors) - expected
    if config.tied_embeddings and HEAD in extra:
        check_identical(shard, HEAD, shard, EMBEDDING)
        extra.remove(HEAD)
    check_none(file, extra, "not a tensor of this model")


def _stored_name(shard: Shard, name: str) -> str:
    """The stored tensor that contains one of Meta's: the fused one, if the file has it."""
    layer, _, in_layer = name.partition(".attention.")
    fused = f"{layer}.{_FUSED}"
    return fused if f"attention.{in_layer}" in (QUERY, KEY, VALUE) and fused in shard.tensors else name


def _part(config: ModelConfig, shard: Shard, name: str) -> WeightPart:
    stored = _stored_name(shard, name)
    part = tensor_part(shard, stored)
    if stored == name:
        return part
    attention = config.layers[0].attention
    first_key, first_value = attention.q_dim, attention.q_dim + attention.kv_dim
    ends = {QUERY: (0, first_key), KEY: (first_key, first_value)}
    start, end = ends.get("attention." + name.partition(".attention.")[2], (first_value, None))
    return slice_rows(part, slice(start, end))


PLUG = GptFast()
