"""What a repository of another program declares about its quantized weights; no weights are read, and no PyTorch.

The declaration is an object of config.json, or a file of its own:

    config.json: quantization_config     transformers, vLLM, SGLang: `quant_method`, and the keys of that method
    config.json: compression_config      the same of older compressed-tensors
    config.json: quantization            MLX; it repeats the object as `quantization_config`, without a `quant_method`
    hf_quant_config.json: quantization   NVIDIA ModelOpt
    quantize_config.json                 AutoGPTQ
    quant_config.json                    AutoAWQ

Keys by method, as in transformers 5.24 (`utils/quantization_config.py`), compressed-tensors 0.12 (`quantization/
quant_config.py`), vLLM 0.11 (`layers/quantization/modelopt.py`) and mlx-lm 0.28 (`utils.py`).
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from gptfast_cli.core.errors import UsageError
from gptfast_cli.core.fields import Fields, read_fields
from gptfast_cli.core.files import is_file

CONFIG_FILE: Final = "config.json"
_KEYS: Final = ("quantization", "quantization_config", "compression_config")
_OWN_FILES: Final = {"hf_quant_config.json": "modelopt", "quantize_config.json": "gptq", "quant_config.json": "awq"}
_HEAD: Final = "lm_head"
_EMBEDDING: Final = "embed_tokens"


@dataclass(frozen=True, slots=True)
class WeightFormat:
    """How the elements of a matrix [out_features, in_features] are stored.

    bits:       of an element
    is_float:   elements are floats (fp8, fp4, nf4), not integers
    group_size: elements of a row that share a scale; None is the whole row, or the whole matrix
    group_rows: rows that share it too, in a block of `group_rows` x `group_size`
    group_bits: bits of what each group has: its scale, and its zero point or bias
    """

    bits: int
    is_float: bool = False
    group_size: int | None = None
    group_rows: int = 1
    group_bits: float = 0


@dataclass(frozen=True, slots=True)
class ModuleRule:
    """Modules whose name the pattern finds have this format; None is plain, not quantized."""

    pattern: re.Pattern[str]
    format: WeightFormat | None


@dataclass(frozen=True, slots=True)
class QuantizationConfig:
    """The declared quantization of a model.

    method:   one of `METHODS`, or the name of a method that is not among them, as it is declared
    format:   of the matrices for which no rule says otherwise; None where the declaration does not say
    ignored:  modules that are left plain, as they are declared: names, or patterns in the syntax of the method
    rules:    the first whose pattern finds a module's name decides
    declared: the object itself, for the keys of one method: `desc_act`, `checkpoint_format`, `activation_scheme` ...
    """

    method: str
    format: WeightFormat | None
    ignored: tuple[str, ...]
    rules: tuple[ModuleRule, ...]
    declared: Fields

    @property
    def bits(self) -> int | None:
        """Bits of an element of most matrices; None where the declaration does not say."""
        return None if self.format is None else self.format.bits

    @property
    def group_size(self) -> int | None:
        """Elements of a row that share a scale; None is the whole row, or not declared."""
        return None if self.format is None else self.format.group_size

    def __str__(self) -> str:
        """Short form, used as the name of a scheme: `gptq-4bit-g128`, `awq-4bit-g128`, `fp8`, `mxfp4`."""
        if self.format is None or self.method in ("fp8", "mxfp4"):
            return self.method
        is_row_group = self.format.group_rows == 1 and self.method != "bitsandbytes"
        group = f"-g{self.group_size}" if is_row_group and self.group_size is not None else ""
        return f"{self.method}-{self.bits}bit{group}"

    def format_of(self, module: str) -> WeightFormat | None:
        """The format of a module's matrix, such as `model.layers.0.self_attn.q_proj`; None if it is plain."""
        return next((rule.format for rule in self.rules if rule.pattern.search(module)), self.format)


def read_quantization_config(folder: Path) -> QuantizationConfig | None:
    """The declaration in a folder; None if its weights are plain.

    Raises CorruptError for a damaged file, UsageError for a pattern that is not supported, and OSError.
    """
    if is_file(folder / CONFIG_FILE):
        found = quantization_config(read_fields(folder / CONFIG_FILE, infinity=True))
        if found is not None:
            return found
    for name, method in _OWN_FILES.items():
        if is_file(folder / name):
            return _parse(method, read_fields(folder / name))
    return None


def quantization_config(config: Fields) -> QuantizationConfig | None:
    """The declaration in the contents of a config.json, that of its text model included; None if there is none."""
    key = next((key for key in _KEYS if isinstance(config.values.get(key), Mapping)), None)
    if key is None:
        return quantization_config(config.section("text_config")) if "text_config" in config else None
    declared = config.section(key)
    return _parse("mlx" if key == "quantization" else _method(declared), declared)


def _method(declared: Fields) -> str:
    method = declared.text("quant_method", "").replace("_", "-")
    if method:
        return _ALIASES.get(method, method)
    return next((name for name, keys in _TELLING_KEYS.items() if any(key in declared for key in keys)), "quantized")


def _parse(method: str, declared: Fields) -> QuantizationConfig:
    return _PARSERS.get(method, _unknown)(method, declared)


def _gptq(method: str, declared: Fields) -> QuantizationConfig:
    """AutoGPTQ and GPTQModel: a float16 scale and a zero point of `bits` for each group.

    `dynamic` of GPTQModel maps `+:REGEX` to other bits and group sizes, and `-:REGEX` to {}, for plain modules.
    """
    usual = _integers(declared)
    rules, ignored = [], list(_names(declared, "modules_to_not_convert"))
    for key in declared.section("dynamic") if "dynamic" in declared else ():
        pattern = _regex(declared, f"^(?:{key.removeprefix('+:').removeprefix('-:')})")
        if key.startswith("-:"):
            ignored.append(key.removeprefix("-:"))
            rules.append(ModuleRule(pattern, None))
        else:
            rules.append(ModuleRule(pattern, _integers(declared.section("dynamic").section(key), usual)))
    ends = (_EMBEDDING,) if declared.flag("lm_head", default=False) else (_EMBEDDING, _HEAD)
    rules += _plain(declared, (*_names(declared, "modules_to_not_convert"), *ends))
    return QuantizationConfig(method, usual, tuple(ignored), tuple(rules), declared)


def _awq(method: str, declared: Fields) -> QuantizationConfig:
    """AutoAWQ: as GPTQ; a file of its own says `w_bit` and `q_group_size`."""
    return _linears(method, declared, _integers(declared), _names(declared, "modules_to_not_convert"))


def _compressed_tensors(method: str, declared: Fields) -> QuantizationConfig:
    """compressed-tensors: `config_groups`, each with the modules that it is for, and `ignore`.

    A target is a class of modules, such as Linear, the name of a module, or `re:` and a regular expression.
    """
    ignored = _names(declared, "ignore")
    rules = [ModuleRule(_of_target(declared, target), None) for target in (*ignored, f"re:.*{_EMBEDDING}$")]
    usual: WeightFormat | None = None
    groups = declared.section("config_groups")
    for name in groups:
        group = groups.section(name)
        targets = group.texts("targets") if "targets" in group else ("Linear",)
        stored = _of_scheme(group.section("weights")) if "weights" in group else None
        for target in targets:
            if target.isidentifier() and target[0].isupper():
                usual = usual or stored
            else:
                rules.append(ModuleRule(_of_target(declared, target), stored))
    if usual is None:  # no group is for a whole class: all other modules are plain
        usual = next((rule.format for rule in rules if rule.format is not None), None)
        rules.append(ModuleRule(re.compile(""), None))
    return QuantizationConfig(method, usual, ignored, tuple(rules), declared)


def _modelopt(method: str, declared: Fields) -> QuantizationConfig:
    """ModelOpt: `quant_algo` and excluded modules with wildcards, either in config.json or below `quantization`.

    MIXED_PRECISION has an algorithm for each module of `quantized_layers`; all others are plain.
    """
    if "quantization" in declared:
        declared = declared.section("quantization")
    ignored = _names(declared, "exclude_modules") + _names(declared, "ignore")
    rules = [ModuleRule(_wildcards(declared, name), None) for name in (*ignored, f"*{_EMBEDDING}")]
    usual = _of_algorithm(declared)
    if "quantized_layers" in declared:
        layers = declared.section("quantized_layers")
        rules += [ModuleRule(_wildcards(declared, name), _of_algorithm(layers.section(name))) for name in layers]
        usual = next((rule.format for rule in rules if rule.format is not None), None)
        rules.append(ModuleRule(re.compile(""), None))
    elif usual is None and "config_groups" in declared:
        of_groups = _compressed_tensors(method, declared)
        return replace(of_groups, ignored=ignored, rules=(*rules, *of_groups.rules))
    return QuantizationConfig(method, usual, ignored, tuple(rules), declared)


def _fp8(method: str, declared: Fields) -> QuantizationConfig:
    """fp8 of transformers and vLLM: a float32 scale for each block of `weight_block_size`, or for each matrix."""
    ignored = _names(declared, "modules_to_not_convert") or _names(declared, "ignored_layers")
    usual = WeightFormat(8, is_float=True)
    if "weight_block_size" in declared:
        sizes = declared.integers("weight_block_size")
        if len(sizes) != 2 or 0 in sizes:  # rows and columns
            raise declared.corrupt("weight_block_size", f"{list(sizes)} is not two sizes above 0")
        usual = WeightFormat(8, is_float=True, group_rows=sizes[0], group_size=sizes[1], group_bits=32)
    return _linears(method, declared, usual, ignored)


def _bitsandbytes(method: str, declared: Fields) -> QuantizationConfig:
    """bitsandbytes: nf4 or fp4 in blocks of 64, or int8 with a float32 scale for each row.

    With double quantization a block's scale has 8 bits, and 256 scales share a float32 (Dettmers et al. 2023,
    "QLoRA", arXiv:2305.14314).
    """
    if declared.flag("load_in_4bit", default=False):
        scale_bits = 8 + 32 / 256 if declared.flag("bnb_4bit_use_double_quant", default=False) else 32
        usual = WeightFormat(4, is_float=True, group_size=64, group_bits=scale_bits)
    else:
        usual = WeightFormat(8, group_bits=32)
    return _linears(method, declared, usual, _names(declared, "llm_int8_skip_modules"))


def _mxfp4(method: str, declared: Fields) -> QuantizationConfig:
    """MXFP4 of the OCP Microscaling specification 1.0: fp4 in groups of 32 that share an 8-bit exponent."""
    return _linears(method, declared, _MXFP4, _names(declared, "modules_to_not_convert"))


def _mlx(method: str, declared: Fields) -> QuantizationConfig:
    """MLX: embedding and head are quantized too; a module's own key is false, or its own bits and group size."""
    usual = _of_mlx(declared)
    own = {key: value for key, value in declared.values.items() if isinstance(value, Mapping) or value is False}
    ignored = tuple(key for key, value in own.items() if value is False)
    rules = [
        ModuleRule(_named(name), None if value is False else _of_mlx(declared.section(name)))
        for name, value in own.items()
    ]
    return QuantizationConfig(method, usual, ignored, tuple(rules), declared)


def _unknown(method: str, declared: Fields) -> QuantizationConfig:
    """A method that is not in METHODS: its bits, if it declares them as GPTQ or AWQ do."""
    usual = _integers(declared) if any(key in declared for key in ("bits", "w_bit")) else None
    return _linears(method, declared, usual, ())


def _linears(method: str, declared: Fields, usual: WeightFormat | None, ignored: tuple[str, ...]) -> QuantizationConfig:
    """A declaration of all linear layers but the ignored ones and the head, and not of the embedding."""
    rules = tuple(_plain(declared, (*ignored, _EMBEDDING, _HEAD)))
    return QuantizationConfig(method, usual, ignored, rules, declared)


_PARSERS: Final[Mapping[str, Callable[[str, Fields], QuantizationConfig]]] = {
    "gptq": _gptq,
    "awq": _awq,
    "compressed-tensors": _compressed_tensors,
    "fp8": _fp8,
    "modelopt": _modelopt,
    "bitsandbytes": _bitsandbytes,
    "mxfp4": _mxfp4,
    "mlx": _mlx,
}

METHODS: Final = tuple(_PARSERS)
"""Methods whose keys are known; a declaration of another one has at most its bits."""

_TELLING_KEYS: Final = {
    "bitsandbytes": ("load_in_4bit", "load_in_8bit"),
    "modelopt": ("quant_algo",),
    "compressed-tensors": ("config_groups",),
    "gptq": ("desc_act", "sym"),
    "awq": ("w_bit",),
}
"""Keys by which a declaration without `quant_method` is known."""

_ALIASES: Final = {
    "gptq-marlin": "gptq",
    "awq-marlin": "awq",
    "modelopt-fp4": "modelopt",
    "modelopt-mixed": "modelopt",
    "bitsandbytes-4bit": "bitsandbytes",
    "bitsandbytes-8bit": "bitsandbytes",
}

_MXFP4: Final = WeightFormat(4, is_float=True, group_size=32, group_bits=8)
_NVFP4: Final = WeightFormat(4, is_float=True, group_size=16, group_bits=8)
_FP8: Final = WeightFormat(8, is_float=True)

_ALGORITHMS: Final = {
    "FP8": _FP8,
    "FP8_PER_CHANNEL_PER_TOKEN": replace(_FP8, group_bits=32),
    "FP8_PB_WO": replace(_FP8, group_size=128, group_rows=128, group_bits=32),
    "MXFP8": replace(_FP8, group_size=32, group_bits=8),
    "NVFP4": _NVFP4,
    "NVFP4_AWQ": _NVFP4,
    "W4A8_NVFP4_FP8": _NVFP4,
    "W4A16_AWQ": WeightFormat(4, group_size=128, group_bits=16),
    "W4A8_AWQ": WeightFormat(4, group_size=128, group_bits=16),
    "W8A16": WeightFormat(8, group_bits=16),
    "INT8_SQ": WeightFormat(8, group_bits=32),
}
"""`quant_algo` of ModelOpt."""

_MLX_MODES: Final = {
    "mxfp4": _MXFP4,
    "mxfp8": replace(_FP8, group_size=32, group_bits=8),
    "nvfp4": _NVFP4,
}


def _integers(declared: Fields, usual: WeightFormat | None = None) -> WeightFormat:
    """Bits and group size of GPTQ and AWQ; what is missing is that of `usual`."""
    bits_key, size_key = ("bits", "group_size") if "w_bit" not in declared else ("w_bit", "q_group_size")
    bits = declared.integer(bits_key, None if usual is None else usual.bits, maximum=16)
    size = declared.integer(size_key, -1 if usual is None else usual.group_size or -1, minimum=-1)
    return WeightFormat(bits, group_size=size if size > 0 else None, group_bits=16 + bits)


def _of_scheme(weights: Fields) -> WeightFormat:
    """The `weights` of a group of compressed-tensors: scales of 16 bits, of 8 for floats of 4 bits."""
    bits = weights.integer("num_bits", 8, maximum=16)
    is_float = weights.text("type", "int") == "float"
    size = weights.integer("group_size", -1, minimum=-1)
    rows = 1
    if "block_structure" in weights and isinstance(weights.values["block_structure"], list):
        rows, size = (*weights.integers("block_structure"), 1, 1)[:2]
    scale_bits = 8 if is_float and bits == 4 else 16
    zero_bits = 0 if weights.flag("symmetric", default=True) else bits
    return WeightFormat(bits, is_float, size if size > 0 else None, max(rows, 1), scale_bits + zero_bits)


def _of_algorithm(declared: Fields) -> WeightFormat | None:
    algorithm = declared.text("quant_algo", "").upper()
    stored = _ALGORITHMS.get(algorithm)
    if stored is None or stored.group_rows > 1 or stored.group_size is None:
        return stored
    return replace(stored, group_size=declared.integer("group_size", stored.group_size))


def _of_mlx(declared: Fields) -> WeightFormat:
    """Affine groups have a scale and a bias of 16 bits each; other modes have a fixed format."""
    mode = declared.text("mode", "affine")
    if mode in _MLX_MODES:
        return _MLX_MODES[mode]
    return WeightFormat(
        declared.integer("bits", 4, maximum=16), group_size=declared.integer("group_size", 64), group_bits=32
    )


def _names(declared: Fields, key: str) -> tuple[str, ...]:
    return declared.texts(key) if key in declared else ()


def _plain(declared: Fields, patterns: tuple[str, ...]) -> Iterator[ModuleRule]:
    """Rules for modules to leave plain, in the syntax of transformers: the name's first parts, or how it ends.

    As `should_convert_module` has it: the first parts may be a regular expression.
    """
    for pattern in patterns:
        yield ModuleRule(_regex(declared, rf"^(?:{pattern})(?:(?<=\.)|(?=\.|$))|{re.escape(pattern)}$"), None)


def _of_target(declared: Fields, target: str) -> re.Pattern[str]:
    """The syntax of compressed-tensors: the whole name, or `re:` and what the name begins with."""
    return _regex(declared, f"^(?:{target.removeprefix('re:')})") if target.startswith("re:") else _named(target)


def _named(name: str) -> re.Pattern[str]:
    return re.compile(rf"^{re.escape(name)}$")


def _wildcards(declared: Fields, pattern: str) -> re.Pattern[str]:
    """The syntax of ModelOpt: a name with wildcards, of a module or of one that it is in."""
    return _regex(declared, rf"^{'.*'.join(map(re.escape, pattern.split('*')))}(?:\.|$)")


_MOST_REPEATS: Final = 5
_REPEATED_GROUP: Final = re.compile(r"\)[*+{]")
_REPEAT: Final = re.compile(r"(?<!\\)[*+{]")


def _regex(declared: Fields, pattern: str) -> re.Pattern[str]:
    """A pattern from a file of somebody else, if matching it cannot take long.

    Without a group that is repeated, matching takes at most n^repeats steps for a name of n characters.
    """
    if _REPEATED_GROUP.search(pattern) or len(_REPEAT.findall(pattern)) > _MOST_REPEATS:
        raise UsageError(f"{declared.where}: the pattern {pattern!r} is not supported: it has too many repetitions.")
    try:
        return re.compile(pattern)
    except re.error as error:
        raise declared.corrupt(pattern, f"is no regular expression ({error})") from error
