"""GGUF metadata as the config.json of the model that it was made from, so that the model's family reads both.

A GGUF file names an architecture, which stands before each key of its sizes, as in `llama.block_count`. Keys that no
family reads are refused unless they have a value that changes nothing: each of them may change the computation.
Source: https://github.com/ggml-org/llama.cpp, gguf-py/gguf/constants.py, conversion/ and src/models/.
"""

import math
from collections.abc import Callable, Container, Mapping
from ctypes import c_float
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from gptfast_cli.core.errors import CorruptError, UsageError
from gptfast_cli.core.fields import Fields
from gptfast_cli.core.gguf import GgufArray

HfConfig: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True)
class GgufModel:
    """What a GGUF file says of a model.

    where:        the file's name
    architecture: such as "llama"
    keys:         the values of the architecture's keys, without its name; float32 as the shortest decimal that it is
    shapes:       of each tensor, by its name
    vector:       reads the numbers of a small tensor
    """

    where: str
    architecture: str
    keys: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]
    vector: Callable[[str], list[float]]

    @property
    def head_dim(self) -> int:
        """Elements of a head."""
        size: int = self.keys.get("attention.key_length", self.keys["embedding_length"] // self.keys[_HEADS])
        return size

    def refused(self, name: str, why: str) -> UsageError:
        """The error that a key is not supported."""
        return UsageError(f"{self.where}: {self.architecture}.{name}: {why} is not supported.", _ANOTHER)


def gguf_model(
    metadata: Fields, shapes: Mapping[str, tuple[int, ...]], vector: Callable[[str], list[float]]
) -> GgufModel:
    """The model of a file's metadata. Raises CorruptError if it names no architecture."""
    architecture = metadata.text("general.architecture")
    own = {name.removeprefix(f"{architecture}."): name for name in metadata if name.startswith(f"{architecture}.")}
    keys = {name: _value(metadata.values[stored]) for name, stored in own.items()}
    return GgufModel(metadata.where, architecture, keys, shapes, vector)


def _value(value: Any) -> Any:  # noqa: ANN401  (a value of metadata)
    """A list of equal numbers as that number, a float32 as the shortest decimal that it is."""
    if isinstance(value, GgufArray):
        value = list(value)
    if isinstance(value, list) and value and all(type(each) is int and each == value[0] for each in value):
        return value[0]
    if not isinstance(value, float) or not math.isfinite(value):
        return value
    shorter = (float(f"{value:.{n_digits}g}") for n_digits in range(1, 10))
    return next((each for each in shorter if c_float(each).value == value), value)


@dataclass(frozen=True, slots=True)
class GgufLayout:
    """How GGUF files of an architecture hold the models of a family.

    architecture: as it stands in a file
    keys:         keys that only some architectures have, and the key of config.json with the same value
    reads:        such keys that `changes` reads
    needs:        one that the file must have, where files of other families have the same architecture
    changes:      what else a config.json would have, by the model and the config so far
    has_pairs:    whether the rows of queries and keys are interleaved RoPE pairs, in Meta's order
    names:        tensors with names of their own, by our name of the weight
    """

    architecture: str
    keys: Mapping[str, str] = field(default_factory=dict)
    reads: frozenset[str] = frozenset()
    needs: str | None = None
    changes: Callable[[GgufModel, HfConfig], HfConfig] = lambda _model, _config: {}
    has_pairs: bool = False
    names: Mapping[str, str] = field(default_factory=dict)

    def holds(self, model: GgufModel) -> bool:
        """Whether a file has this layout."""
        return model.architecture == self.architecture and (self.needs is None or self.needs in model.keys)

    def config(self, model: GgufModel, model_type: str) -> HfConfig:
        """The config.json. Raises CorruptError if a key is missing, UsageError if one is not supported."""
        self._check(model)
        named = {**_COMMON, **self.keys}
        config: HfConfig = {
            "model_type": model_type,
            "rope_theta": 10_000.0,
            **{named[name]: value for name, value in model.keys.items() if name in named},
            "vocab_size": model.shapes.get("token_embd.weight", (0,))[0],
            "tie_word_embeddings": "output.weight" not in model.shapes,
            "attention_bias": "blk.0.attn_q.bias" in model.shapes,
            "mlp_bias": "blk.0.ffn_up.bias" in model.shapes,
            **_rope(model),
        }
        return config | self.changes(model, config)

    def _check(self, model: GgufModel) -> None:
        keys, where = model.keys, f"{model.where}: {model.architecture}"
        for name in (*sorted(_SIZES - _OPTIONAL), _EPSILON):
            if name not in keys:
                raise CorruptError(f"{where}.{name}: missing", _ANOTHER)
        for name, value in keys.items():
            if isinstance(value, list) and name != PATTERN:
                raise model.refused(name, "a list, as of layers that differ,")
            if name in _SIZES and (type(value) is not int or value < 1):
                raise CorruptError(f"{where}.{name}: {value!r:.40} is not a whole number above 0", _ANOTHER)
            is_read = name in _COMMON or name in self.keys or name in self.reads or name in _READ
            if not is_read and value not in _NEUTRAL.get(name, ()):
                raise model.refused(name, f"{value!r:.40}")
        if keys.get("attention.value_length", model.head_dim) != model.head_dim:
            raise model.refused("attention.value_length", "another size than that of keys")


_ANOTHER: Final = "Take the original model in safetensors form: gptfast download org/name"
_HEADS: Final = "attention.head_count"
_EPSILON: Final = "attention.layer_norm_rms_epsilon"
WINDOW: Final = "attention.sliding_window"
PATTERN: Final = "attention.sliding_window_pattern"

_COMMON: Final[Mapping[str, str]] = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    _HEADS: "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    _EPSILON: "rms_norm_eps",
    "rope.freq_base": "rope_theta",
}
_OPTIONAL: Final = frozenset(
    ("attention.head_count_kv", "attention.key_length", "attention.value_length", "rope.dimension_count")
)
_SIZES: Final = (_OPTIONAL | _COMMON.keys()) - {_EPSILON, "rope.freq_base"}

_SCALING: Final = "rope.scaling."
_YARN: Final = {
    "factor": "factor",
    "original_context_length": "original_max_position_embeddings",
    "attn_factor": "attention_factor",
    "yarn_attn_factor": "attention_factor",
    "yarn_beta_fast": "beta_fast",
    "yarn_beta_slow": "beta_slow",
}
_READ: Final = frozenset(
    (
        *("attention.value_length", "rope.dimension_count", "rope.scale_linear", f"{_SCALING}type"),
        *(f"{_SCALING}{name}" for name in (*_YARN, "yarn_log_multiplier")),
    )
)
"""Keys that `_rope` reads or `_check` compares."""

_NEUTRAL: Final[Mapping[str, Container[Any]]] = {
    "attention.causal": (True,),
    "expert_count": (0,),
    "expert_used_count": (0,),
    "nextn_predict_layers": (0,),
    "pooling_type": (0,),
    f"{_SCALING}finetuned": (True, False),  # whether the model was trained with the scaling
    f"{_SCALING}yarn_ext_factor": (1.0, -1.0),
    "tensor_data_layout": ("Meta AI original pth",),
    "use_parallel_residual": (True, False),  # of architectures that gptfast lacks
    "vocab_size": range(2**31),  # the embedding has it
}
"""Keys that gptfast does not read, with the values at which they change nothing."""


def sliding_window(model: GgufModel, _config: HfConfig) -> HfConfig:
    """The window of all layers; the key is 0 where they have none."""
    return {"sliding_window": model.keys.get(WINDOW) or None}


def layer_types(model: GgufModel, period: int, *, has_windows: bool) -> HfConfig:
    """Which layers have a window: as the file says of each, or else all but the last of every `period`.

    has_windows: whether there are any if the file does not say how large they are
    """
    match model.keys.get(PATTERN, period):
        case [*flags]:
            pass
        case int(period) if period > 0:
            flags = [number % period < period - 1 for number in range(model.keys["block_count"])]
        case pattern:
            raise model.refused(PATTERN, f"{pattern!r:.40}")
    has_windows = bool(model.keys.get(WINDOW, has_windows))
    return {"layer_types": ["sliding_attention" if flag and has_windows else "full_attention" for flag in flags]}


_FREQUENCIES: Final = "rope_freqs.weight"
_LONG, _SHORT = "rope_factors_long.weight", "rope_factors_short.weight"


def _rope(model: GgufModel) -> HfConfig:
    """`rope_scaling` and what belongs to it."""
    keys = model.keys
    scaling = {name.removeprefix(_SCALING): value for name, value in keys.items() if name.startswith(_SCALING)}
    factor = scaling.get("factor") or keys.get("rope.scale_linear") or 1.0
    kind = scaling.get("type", "linear")
    found: HfConfig = {}
    if (n_rotated := keys.get("rope.dimension_count", model.head_dim)) != model.head_dim:
        found["partial_rotary_factor"] = (n_rotated + 0.5) / model.head_dim  # of which the whole part counts
    if kind == "longrope" or _LONG in model.shapes:
        return found | _longrope(model, scaling)
    if _FREQUENCIES in model.shapes:
        return found | {"rope_scaling": _divided(model, factor)}
    if kind == "yarn":
        values = {"rope_type": "yarn"} | {_YARN[name]: scaling[name] for name in _YARN if name in scaling}
        if "yarn_log_multiplier" in scaling:
            values |= {"mscale": 1.0, "mscale_all_dim": scaling["yarn_log_multiplier"]}
        return found | {"rope_scaling": values}
    if kind not in ("none", "linear"):
        raise model.refused(f"{_SCALING}type", f"{kind!r:.40}")
    return found if factor == 1.0 or kind == "none" else found | {"rope_scaling": {"rope_type": kind, "factor": factor}}


def _divided(model: GgufModel, factor: float) -> HfConfig:
    """Frequencies that are divided pair by pair in texts of any length: Llama 3.1's, whose factors are in a tensor."""
    if factor != 1.0:
        raise model.refused(f"{_SCALING}factor", f"{factor!r:.40} beside {_FREQUENCIES}")
    factors = model.vector(_FREQUENCIES)
    return {
        "rope_type": "longrope",
        "short_factor": factors,
        "long_factor": factors,
        "factor": 1.0,
        "attention_factor": 1.0,
        "original_max_position_embeddings": model.keys["context_length"],
    }


def _longrope(model: GgufModel, scaling: Mapping[str, Any]) -> HfConfig:
    if _LONG not in model.shapes or _SHORT not in model.shapes:
        raise CorruptError(f"{model.where}: {_LONG} or {_SHORT}: missing", _ANOTHER)
    original = scaling.get("original_context_length", model.keys["context_length"])
    values = {"rope_type": "longrope", "short_factor": model.vector(_SHORT), "long_factor": model.vector(_LONG)}
    if "attn_factor" in scaling:
        values["attention_factor"] = scaling["attn_factor"]
    return {"rope_scaling": values, "original_max_position_embeddings": original}
