"""Shapes of models: known names, `config.json` files, and `layers=..,dim=..` lists."""

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Final

from gptfast_cli.core.checkpoints.quantization_config import (
    CONFIG_FILE,
    QuantizationConfig,
    quantization_config,
    read_quantization_config,
)
from gptfast_cli.core.config import MOST_LAYERS, LlamaSizes, ModelConfig, QKNorm, RopeConfig
from gptfast_cli.core.errors import NotFoundError, UsageError
from gptfast_cli.core.families import read_model
from gptfast_cli.core.fields import Fields, read_fields


class KnownShapes(Mapping[str, ModelConfig]):
    """The shapes of published models, by the name that `--arch` takes, from what each config.json says of its shape.

    Those facts stand in shapes.json under Hugging Face's keys; of a multimodal model they are those of its text model.
    """

    @cached_property
    def _published(self) -> Fields:
        return read_fields(Path(__file__).with_suffix(".json"))

    def __iter__(self) -> Iterator[str]:
        return iter(self._published)

    def __len__(self) -> int:
        return len(self._published.values)

    def __getitem__(self, name: str) -> ModelConfig:
        if name not in self._published:
            raise KeyError(name)
        return read_model(self._published.section(name)).config


KNOWN_SHAPES: Final = KnownShapes()

_CONTEXT = 131_072  # of a shape whose sizes are given: the cache grows with what is used, not with this
_REQUIRED = ("layers", "dim", "heads", "ffn", "vocab")
_OPTIONAL = ("kv_heads", "head_dim", "context", "theta", "tied", "qk_norm", "window", "full_every")
_EXAMPLE = "layers=4,dim=768,heads=12,kv_heads=12,ffn=3072,vocab=32000"


@dataclass(frozen=True, slots=True)
class Shape:
    """A model without weights; `name` is what it was asked for as, `quantization` what its config.json declares."""

    name: str
    config: ModelConfig
    quantization: QuantizationConfig | None = None


def is_shape(text: str) -> bool:
    """Whether a text means a SHAPE rather than a MODEL: a known name, a config.json, or sizes."""
    return text in KNOWN_SHAPES or text.endswith(".json") or "=" in text


def read_shape(text: str) -> Shape:
    """The shape that a text means.

    Raises UsageError for a name or a size that means none, NotFoundError for a file that is not there, and CorruptError
    and UsageError for a config.json as its family does.
    """
    if text in KNOWN_SHAPES:
        return Shape(text, KNOWN_SHAPES[text])
    if text.endswith(".json"):
        return read_shape_file(Path(text).expanduser(), text)
    if "=" in text:
        return Shape(text, _from_sizes(text))
    raise UsageError(f"There is no shape called {text!r}.", f"{_meant(text, KNOWN_SHAPES)}Or give sizes: {_EXAMPLE}")


def read_shape_file(path: Path, name: str) -> Shape:
    """The shape of a config.json, and its quantization, which a file beside it may declare; errors as `read_shape`."""
    if not path.is_file():
        raise NotFoundError(f"{path}: there is no such file.", "Name a config.json, or a known shape: llama-2-7b")
    fields = read_fields(path, infinity=True)
    is_of_folder = path.name == CONFIG_FILE
    declared = read_quantization_config(path.parent) if is_of_folder else quantization_config(fields)
    return Shape(name, read_model(fields).config, declared)


def _from_sizes(text: str) -> ModelConfig:
    sizes = _pairs(text)
    dim, n_heads = _whole(sizes, "dim"), _whole(sizes, "heads")
    n_kv_heads = _whole(sizes, "kv_heads", n_heads)
    if n_heads % n_kv_heads:
        raise _refused(f"{n_heads} query heads cannot share kv_heads={n_kv_heads}")
    if "head_dim" not in sizes and dim % n_heads:
        raise _refused(f"dim={dim} cannot be cut into heads={n_heads}")
    head_dim = _whole(sizes, "head_dim", dim // n_heads)
    if head_dim % 2 or head_dim == 0:
        raise _refused(f"a head of {head_dim} elements cannot be rotated in pairs")
    config = LlamaSizes(
        n_layers=_layers(sizes),
        dim=dim,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        ffn_dim=_whole(sizes, "ffn"),
        vocab_size=_whole(sizes, "vocab"),
        max_context=_whole(sizes, "context", _CONTEXT),
        norm_eps=1e-5,
        rope=RopeConfig(float(_whole(sizes, "theta", 10_000))),
        tied_embeddings=_flag(sizes, "tied"),
    ).config()
    if (why := config.why_too_large()) is not None:
        raise _refused(why)
    return _with_layers(config, sizes)


def _with_layers(config: ModelConfig, sizes: Mapping[str, str]) -> ModelConfig:
    """The shape with QK-norm, and with a window in all layers but every `full_every`th, where the sizes say so."""
    if "full_every" in sizes and "window" not in sizes:
        raise _refused("full_every says which layers have no window: it needs window too")
    (layer,) = config.kinds
    qk_norm = QKNorm.HEAD if _flag(sizes, "qk_norm") else None
    full = replace(layer, attention=replace(layer.attention, qk_norm=qk_norm))
    if "window" not in sizes:
        return replace(config, layers=(full,) * config.n_layers)
    windowed = replace(full, attention=replace(full.attention, window=_whole(sizes, "window")))
    every = _whole(sizes, "full_every", config.n_layers + 1)
    layers = tuple(windowed if number % every else full for number in range(1, config.n_layers + 1))
    return replace(config, layers=layers)


def _pairs(text: str) -> dict[str, str]:
    """Sizes by their keys, each known and there once, the required ones among them."""
    pairs: dict[str, str] = {}
    for item in text.split(","):
        key, _, value = (part.strip() for part in item.partition("="))
        if key not in (*_REQUIRED, *_OPTIONAL):
            known = ", ".join((*_REQUIRED, *_OPTIONAL))
            raise UsageError(
                f"--arch: a shape has no {key!r}.", f"{_meant(key, (*_REQUIRED, *_OPTIONAL))}Sizes: {known}."
            )
        if key in pairs:
            raise _refused(f"{key} is given twice")
        pairs[key] = value
    if missing := [key for key in _REQUIRED if key not in pairs]:
        raise _refused(f"a shape needs {', '.join(missing)} too")
    return pairs


def _whole(sizes: Mapping[str, str], key: str, default: int | None = None) -> int:
    value = sizes.get(key)
    if value is None and default is not None:
        return default
    if value is None or not (value.isascii() and value.isdecimal() and len(value) < 20 and 0 < int(value) < 2**31):
        raise _refused(f"{key} must be a whole number above 0, not {value!r}")
    return int(value)


def _layers(sizes: Mapping[str, str]) -> int:
    n_layers = _whole(sizes, "layers")
    if n_layers > MOST_LAYERS:
        raise _refused(f"layers must be at most {MOST_LAYERS:,}, not {n_layers}")
    return n_layers


def _flag(sizes: Mapping[str, str], key: str) -> bool:
    value = sizes.get(key, "no")
    if value not in ("yes", "no"):
        raise _refused(f"{key} must be yes or no, not {value!r}")
    return value == "yes"


def _refused(why: str) -> UsageError:
    return UsageError(f"--arch: {why}.", f"Such as {_EXAMPLE}")


def _meant(text: str, names: Iterable[str]) -> str:
    nearest = difflib.get_close_matches(text, list(names), n=3)
    return f"Did you mean {' or '.join(nearest)}? " if nearest else ""
