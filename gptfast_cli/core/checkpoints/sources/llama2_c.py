"""llama2.c's `.bin` files, versions 0 and 1: a header of sizes, then all tensors in float32, contiguous.

Version 0 begins with seven int32; a negative vocabulary size means an untied head. Version 1 has a magic number and a
header of 256 bytes. Implied by the format: RoPE base 10,000 with interleaved pairs, and norm epsilon 1e-5.
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
    tensor_part,
)
from gptfast_cli.core.checkpoints.shard import Shard, TensorInfo
from gptfast_cli.core.config import LlamaSizes, ModelConfig, RopeConfig
from gptfast_cli.core.errors import CorruptError, UsageError

_SUFFIX = ".bin"
_HEADER = "the header"
_MAGIC = 0x616B3432  # "ak42"
_SIZES = struct.Struct("<7i")  # dim, ffn_dim, n_layers, n_heads, n_kv_heads, vocab_size, max_context
_PREFIX = struct.Struct("<Ii")  # magic, version
_HEADER_BYTES = 256  # of version 1 and later
_LARGEST = 1 << 20  # plausible maximum of each size but the vocabulary

_ORDER_0 = (ATTENTION_NORM, QUERY, KEY, VALUE, OUTPUT, FFN_NORM, GATE, DOWN, UP)
_ORDER_1 = (QUERY, KEY, VALUE, OUTPUT, GATE, DOWN, UP)


class Llama2C:
    """Source of llama2.c model files."""

    looks_for = "a .bin file of llama2.c"
    rank = 50

    def holds(self, path: Path) -> bool:
        return bool(_files(path))

    def open(self, path: Path, *, allow_pickle: bool) -> ForeignCheckpoint:  # noqa: ARG002  # there are no pickles
        files = _files(path)
        if len(files) > 1:
            names = ", ".join(file.name for file in files[:3])
            raise UsageError(f"{path}: holds {len(files)} models of llama2.c ({names}).", f"Name one: {files[0]}")
        (file,) = files
        config, version = _read_header(file)
        shard = Shard(file, _layout(file, config, version))
        parts = meta_parts(config, lambda name: tensor_part(shard, name))
        check_parts(config, parts, _HEADER)
        return ForeignCheckpoint(file.parent, file.stem, config, _HEADER, (file,), parts)


def _files(path: Path) -> list[Path]:
    paths = sorted(path.iterdir()) if path.is_dir() else [path]
    return [file for file in paths if file.suffix == _SUFFIX and file.is_file() and _is_ours(_start(file))]


def _start(file: Path) -> bytes:
    with file.open("rb") as opened:
        return opened.read(_HEADER_BYTES)


def _is_ours(start: bytes) -> bool:
    """Whether a file's first bytes are those of llama2.c: its magic number, or seven plausible sizes."""
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
            f"{file.name}: llama2.c file of version {version}; versions 0 and 1 are supported.",
            "Export it again with --version 1; later versions are quantized, which gptfast quantize can do.",
        )
    elif len(start) < _HEADER_BYTES:
        raise CorruptError(f"{file.name}: the header is cut short", FETCH_AGAIN)
    else:
        flag = start[_PREFIX.size + _SIZES.size]
        config = _config(_SIZES.unpack_from(start, _PREFIX.size), tied=flag == 1) if flag in (0, 1) else None
    if config is None:
        raise CorruptError(f"{file.name}: the header has implausible sizes", FETCH_AGAIN)
    return config, version


def _config(sizes: tuple[int, ...], *, tied: bool) -> ModelConfig | None:
    """The shape of a header; None if it is implausible."""
    dim, ffn_dim, n_layers, n_heads, n_kv_heads, vocab_size, max_context = sizes
    if not all(0 < size <= _LARGEST for size in (dim, ffn_dim, n_layers, n_heads, n_kv_heads, max_context)):
        return None
    if not 0 < abs(vocab_size) <= 16 * _LARGEST or n_layers > 10_000:
        return None
    if dim % (2 * n_heads) or n_heads % n_kv_heads:
        return None
    return LlamaSizes(
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
    ).config()


def _layout(file: Path, config: ModelConfig, version: int) -> dict[str, TensorInfo]:
    """Byte range of each tensor, under Meta's names. Raises CorruptError if they do not add up to the file's size."""
    tensors = {}
    end = _HEADER_BYTES if version else _SIZES.size
    for name, shape in _tensors(config, version):
        start, end = end, end + 4 * math.prod(shape)
        tensors[name] = TensorInfo("F32", shape, start, end)
    n_bytes = file.stat().st_size
    if n_bytes != end:
        what = (
            f"{end - n_bytes} bytes are missing" if n_bytes < end else f"{n_bytes - end} bytes follow the last tensor"
        )
        raise CorruptError(f"{file.name}: {what}: the sizes in its header make it {end} bytes", FETCH_AGAIN)
    return tensors


def _tensors(config: ModelConfig, version: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes in file order: each tensor for all layers, then the next."""
    shapes = _shapes(config)
    if version == 0:
        yield EMBEDDING, shapes[EMBEDDING]
        yield from _of_layers(config, _ORDER_0)
        yield NORM, shapes[NORM]
        yield "rotation", (2, config.max_context, config.layers[0].attention.head_dim // 2)  # cosines and sines of RoPE
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
    dim, layer = config.dim, config.layers[0]
    kv_dim, ffn_dim = layer.attention.kv_dim, layer.feed_forward.dim
    return {
        **dict.fromkeys((EMBEDDING, HEAD), (config.vocab_size, dim)),
        **dict.fromkeys((ATTENTION_NORM, FFN_NORM, NORM), (dim,)),
        **dict.fromkeys((QUERY, OUTPUT), (dim, dim)),
        **dict.fromkeys((KEY, VALUE), (kv_dim, dim)),
        **dict.fromkeys((GATE, UP), (ffn_dim, dim)),
        DOWN: (dim, ffn_dim),
    }


PLUG = Llama2C()
