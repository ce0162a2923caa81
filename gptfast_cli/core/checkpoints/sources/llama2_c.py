"""llama2.c's `.bin` files, versions 0 and 1: a header of sizes, then every tensor in float32, one after the other.

Version 0 begins with seven int32, of which a negative vocabulary says that the head is stored by itself; version 1
with a magic number and 256 bytes of header. What the program that reads them takes for granted is the format: RoPE's
base 10,000 and 1e-5 in the norms, in Meta's order of RoPE pairs.
Source: https://github.com/karpathy/llama2.c, export.py and run.c.
"""

import math
import struct
from collections.abc import Iterator
from pathlib import Path

from gptfast_cli.core.checkpoints.downloads import FETCH_AGAIN
from gptfast_cli.core.checkpoints.foreign import (
    ATTENTION_NORM,
    DOWN,
    EMBEDDING,
    FFN_NORM,
    GATE,
    HEAD,
    KEY,
    NORM,
    OUTPUT,
    QUERY,
    UP,
    VALUE,
    ForeignCheckpoint,
    check_parts,
    meta_parts,
    stored_part,
)
from gptfast_cli.core.checkpoints.shard import Shard, StoredTensor
from gptfast_cli.core.config import ModelConfig, RopeConfig
from gptfast_cli.core.errors import CorruptError, UsageError

_SUFFIX = ".bin"
_HEADER = "the header"
_MAGIC = 0x616B3432  # "ak42"
_SIZES = struct.Struct("<7i")  # dim, ffn_dim, n_layers, n_heads, n_kv_heads, vocab_size, max_context
_PREFIX = struct.Struct("<Ii")  # magic, version
_HEADER_BYTES = 256  # of version 1 and later
_LARGEST = 1 << 20  # of any size but the vocabulary: what is larger is no file of this kind

_ORDER_0 = (ATTENTION_NORM, QUERY, KEY, VALUE, OUTPUT, FFN_NORM, GATE, DOWN, UP)
_ORDER_1 = (QUERY, KEY, VALUE, OUTPUT, GATE, DOWN, UP)


class Llama2C:
    """Files as llama2.c's export.py writes them; see Source."""

    looks_for = "a .bin file of llama2.c"
    rank = 50

    def holds(self, path: Path) -> bool:
        return bool(_files(path))

    def open(self, path: Path, *, allow_pickle: bool) -> ForeignCheckpoint:  # noqa: ARG002  # there is none
        files = _files(path)
        if len(files) > 1:
            names = ", ".join(file.name for file in files[:3])
            raise UsageError(f"{path}: holds {len(files)} models of llama2.c ({names}).", f"Name one: {files[0]}")
        (file,) = files
        config, version = _read_header(file)
        shard = Shard(file, _layout(file, config, version))
        parts = meta_parts(config, lambda name: stored_part(shard, name))
        check_parts(config, parts, _HEADER)
        return ForeignCheckpoint(file.parent, file.stem, config, _HEADER, (file,), parts)


def _files(path: Path) -> list[Path]:
    paths = sorted(path.iterdir()) if path.is_dir() else [path]
    return [file for file in paths if file.suffix == _SUFFIX and file.is_file() and _is_ours(_start(file))]


def _start(file: Path) -> bytes:
    with file.open("rb") as opened:
        return opened.read(_HEADER_BYTES)


def _is_ours(start: bytes) -> bool:
    """Whether a file that begins so is one of llama2.c: by its magic number, or by seven sizes that can be meant."""
    if len(start) >= _PREFIX.size and _PREFIX.unpack_from(start)[0] == _MAGIC:
        return True
    return len(start) >= _SIZES.size and _config(_SIZES.unpack_from(start), tied=True) is not None


def _read_header(file: Path) -> tuple[ModelConfig, int]:
    start = _start(file)
    magic, version = _PREFIX.unpack_from(start)
    if magic != _MAGIC:
        sizes = _SIZES.unpack_from(start)
        config, version = _config(sizes, tied=sizes[5] > 0), 0
    elif version != 1:
        raise UsageError(
            f"{file.name}: is of version {version} of llama2.c's files, and 0 and 1 are read.",
            "Export it once more with --version 1; versions above are quantised: gptfast quantize does that.",
        )
    elif len(start) < _HEADER_BYTES:
        raise CorruptError(f"{file.name}: the header is cut short", FETCH_AGAIN)
    else:
        flag = start[_PREFIX.size + _SIZES.size]
        config = _config(_SIZES.unpack_from(start, _PREFIX.size), tied=flag == 1) if flag in (0, 1) else None
    if config is None:
        raise CorruptError(f"{file.name}: the header holds sizes that no model has", FETCH_AGAIN)
    return config, version


def _config(sizes: tuple[int, ...], *, tied: bool) -> ModelConfig | None:
    """The shape that a header describes; None if no model has it."""
    dim, ffn_dim, n_layers, n_heads, n_kv_heads, vocab_size, max_context = sizes
    if not all(0 < size <= _LARGEST for size in (dim, ffn_dim, n_layers, n_heads, n_kv_heads, max_context)):
        return None
    if not 0 < abs(vocab_size) <= 16 * _LARGEST or n_layers > 10_000:
        return None
    if dim % (2 * n_heads) or n_heads % n_kv_heads:
        return None
    return ModelConfig(
        family="llama",
        n_layers=n_layers,
        dim=dim,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=dim // n_heads,
        ffn_dim=ffn_dim,
        vocab_size=abs(vocab_size),
        max_context=max_context,
        norm_eps=1e-5,
        rope=RopeConfig(10_000.0),
        tied_embeddings=tied,
    )


def _layout(file: Path, config: ModelConfig, version: int) -> dict[str, StoredTensor]:
    """Where each tensor lies, under Meta's names; CorruptError where the file's size is another."""
    tensors = {}
    end = _HEADER_BYTES if version else _SIZES.size
    for name, shape in _tensors(config, version):
        start, end = end, end + 4 * math.prod(shape)
        tensors[name] = StoredTensor("F32", shape, start, end)
    n_bytes = file.stat().st_size
    if n_bytes != end:
        what = (
            f"{end - n_bytes} bytes are missing" if n_bytes < end else f"{n_bytes - end} bytes follow the last tensor"
        )
        raise CorruptError(f"{file.name}: {what}: the sizes in its header make it {end} bytes", FETCH_AGAIN)
    return tensors


def _tensors(config: ModelConfig, version: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes in the order of the file: the same tensor of all layers, then the next."""
    shapes = _shapes(config)
    if version == 0:
        yield EMBEDDING, shapes[EMBEDDING]
        yield from _of_layers(config, _ORDER_0)
        yield NORM, shapes[NORM]
        yield "rotation", (2, config.max_context, config.head_dim // 2)  # cosines and sines, which the base gives
    else:
        yield from _of_layers(config, (ATTENTION_NORM, FFN_NORM))
        yield NORM, shapes[NORM]
        yield EMBEDDING, shapes[EMBEDDING]
        yield from _of_layers(config, _ORDER_1)
    if not config.tied_embeddings:
        yield HEAD, shapes[HEAD]


def _of_layers(config: ModelConfig, names: tuple[str, ...]) -> Iterator[tuple[str, tuple[int, ...]]]:
    shapes = _shapes(config)
    return ((f"layers.{layer}.{name}", shapes[name]) for name in names for layer in range(config.n_layers))


def _shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    dim, kv_dim, ffn_dim = config.dim, config.kv_dim, config.ffn_dim
    return {
        **dict.fromkeys((EMBEDDING, HEAD), (config.vocab_size, dim)),
        **dict.fromkeys((ATTENTION_NORM, FFN_NORM, NORM), (dim,)),
        **dict.fromkeys((QUERY, OUTPUT), (dim, dim)),
        **dict.fromkeys((KEY, VALUE), (kv_dim, dim)),
        **dict.fromkeys((GATE, UP), (ffn_dim, dim)),
        DOWN: (dim, ffn_dim),
    }


PLUG = Llama2C()
