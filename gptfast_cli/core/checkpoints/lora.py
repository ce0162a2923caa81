"""A LoRA adapter of PEFT, merged into the weights of its base model: W + scale * B A.

LoRA: Hu et al. 2021, arXiv:2106.09685; rsLoRA: Kalajdzievski 2023, arXiv:2312.03732.

Format (https://huggingface.co/docs/peft/developer_guides/checkpoint): `adapter_config.json` and
`adapter_model.safetensors`, whose tensors have the names of the base model's modules:

    base_model.model.MODULE.lora_A.weight       [r, in_features]
    base_model.model.MODULE.lora_B.weight       [out_features, r]
    base_model.model.MODULE.lora_embedding_A    [r, vocab_size]; its B is [dim, r], and the change is (B A)^T
    base_model.model.MODULE.weight              takes the place of the base's (modules_to_save)

scale is alpha / r, or alpha / sqrt(r) with use_rslora; rank_pattern and alpha_pattern give some modules their own r and
alpha. fan_in_fan_out says that the base keeps its matrices transposed, which ours never are: it changes nothing here.
"""

import hashlib
import math
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

from torch import Tensor

from gptfast_cli.core.checkpoints.checkpoint import LocatedTensor
from gptfast_cli.core.checkpoints.foreign import part_rows
from gptfast_cli.core.checkpoints.manifest import AdapterEntry, sha256_of
from gptfast_cli.core.checkpoints.shard import Shard, open_shard
from gptfast_cli.core.config import ModelConfig
from gptfast_cli.core.errors import CorruptError, NotFoundError, UsageError
from gptfast_cli.core.fields import Fields, read_fields
from gptfast_cli.core.models.weights import weight_shapes

CONFIG: Final = "adapter_config.json"
WEIGHTS: Final = "adapter_model.safetensors"

_PREFIX: Final = "base_model.model."
_FORMS: Final = {
    ".lora_A.weight": "A",
    ".lora_B.weight": "B",
    ".lora_embedding_A": "embedding A",
    ".lora_embedding_B": "embedding B",
}
_UNSUPPORTED: Final = {
    "use_dora": "DoRA",
    "use_qalora": "QALoRA",
    "lora_bias": "a bias of B",
    "layer_replication": "replicated layers",
    "alora_invocation_tokens": "activated LoRA",
    "arrow_config": "Arrow routing",
    "target_parameters": "LoRA on parameters outside of linear layers",
    "trainable_token_indices": "retrained rows of the embedding",
}
_KEEPS_BASE: Final = (None, True, False, "gaussian", "eva", "orthogonal")
"""Values of init_lora_weights with which training began from the base's own weights."""

_LONGEST_PATTERN: Final = 200
_MOST_QUANTIFIERS: Final = 3  # more could take for ever on a name that does not match

_MERGE_WITH_PEFT: Final = "Merge it with PEFT, merge_and_unload(), save the model, and convert that."
_AGAIN: Final = "The adapter is damaged: fetch or save it again."


@dataclass(frozen=True, slots=True)
class _Module:
    """A tensor of the base model, where it stands in our weights: rows `start` to `end` of `weight`."""

    weight: str
    start: int
    end: int
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Update:
    """B A of a module, to be added with `scale`; `is_embedding`: its transpose."""

    module: _Module
    scale: float
    a: LocatedTensor
    b: LocatedTensor
    is_embedding: bool


@dataclass(frozen=True, slots=True)
class _Replacement:
    """A tensor in place of the base's."""

    module: _Module
    tensor: LocatedTensor


_Change: TypeAlias = _Update | _Replacement


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter that fits a base model; each of its tensors is in one change.

    folder:  that holds it
    entry:   its name and hash, for the manifest
    changes: of each of our weights that it changes, in their order
    """

    folder: Path
    entry: AdapterEntry
    changes: Mapping[str, tuple[_Change, ...]]

    def merge(self, name: str, weight: Tensor) -> None:
        """Merge the changes of a weight into it, in place; float32, as are the products.

        Raises CorruptError if a tensor of the adapter is not finite.
        """
        for change in self.changes.get(name, ()):
            rows = weight[change.module.start : change.module.end]
            if isinstance(change, _Replacement):
                change.tensor.check_finite()
                rows.copy_(change.tensor.tensor)
                continue
            change.a.check_finite()
            change.b.check_finite()
            product = change.b.tensor.float() @ change.a.tensor.float()
            rows.add_(product.T if change.is_embedding else product, alpha=change.scale)


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter of PEFT."""
    return (folder / CONFIG).is_file()


def refuse_adapter(folder: Path) -> UsageError:
    """The error for an adapter where a whole model belongs."""
    base = read_fields(folder / CONFIG).text("base_model_name_or_path", "") or "BASE"
    return UsageError(
        f"{folder}: is a LoRA adapter, not a whole model.",
        f"Merge it into its base model: gptfast convert {shlex.quote(base)} --lora {shlex.quote(str(folder))}",
    )


def open_adapter(folder: Path, name: str, config: ModelConfig, sources: Mapping[str, tuple[str, ...]]) -> Adapter:
    """Open an adapter and check that it fits a base model.

    name:    of the adapter, for the manifest
    sources: the base's tensor names in Hugging Face form, of each weight

    Raises NotFoundError if there is none, UsageError if it needs what gptfast lacks or is for another base model,
    CorruptError if its files contradict each other.
    """
    if not is_adapter(folder):
        raise NotFoundError(
            f"{folder}: holds no LoRA adapter (looked for {CONFIG}).", "--lora takes the folder that PEFT saved."
        )
    fields = read_fields(folder / CONFIG)
    _refuse_what_we_lack(fields)
    if not (folder / WEIGHTS).is_file():
        raise NotFoundError(
            f"{folder}: has a {CONFIG} and no {WEIGHTS}.",
            "Save it as safetensors: model.save_pretrained(FOLDER, safe_serialization=True)",
        )
    shard = open_shard(folder / WEIGHTS)
    modules = _modules(config, sources)
    changes: list[_Change] = [*_replacements(shard, modules, fields), *_updates(shard, modules, fields)]
    _check_complete(fields, modules, {change.module for change in changes})
    tied = next((change for change in changes if config.tied_embeddings and change.module.weight == "embedding"), None)
    if tied is not None:
        location = (tied.tensor if isinstance(tied, _Replacement) else tied.a).location
        raise UsageError(f"{location}: in the base model the head is tied to the embedding.", _MERGE_WITH_PEFT)
    by_weight: dict[str, tuple[_Change, ...]] = {}
    for change in changes:
        by_weight[change.module.weight] = (*by_weight.get(change.module.weight, ()), change)
    return Adapter(folder, AdapterEntry(name, _sha256(folder)), by_weight)


def _sha256(folder: Path) -> str:
    """The hash of both files: the scale is in the one, the tensors are in the other."""
    hashes = [sha256_of(folder / name) for name in (CONFIG, WEIGHTS)]
    return hashlib.sha256(" ".join(hashes).encode()).hexdigest()


def _refuse_what_we_lack(fields: Fields) -> None:
    kind = fields.text("peft_type", "")
    if kind != "LORA":
        raise UsageError(f"{CONFIG}: peft_type {kind!r} is not supported: gptfast merges LORA.", _MERGE_WITH_PEFT)
    for name, what in _UNSUPPORTED.items():
        if fields.values.get(name):
            raise UsageError(f"{CONFIG}: {name} is not supported: gptfast does not merge {what}.", _MERGE_WITH_PEFT)
    bias = fields.text("bias", "none")
    if bias != "none":
        raise UsageError(
            f"{CONFIG}: bias {bias!r} is not supported: gptfast merges adapters of matrices.", _MERGE_WITH_PEFT
        )
    init = fields.values.get("init_lora_weights")
    if init not in _KEEPS_BASE:
        raise UsageError(
            f"{CONFIG}: init_lora_weights {init!r} changed the base model's weights before training.",
            "Convert the adapter with PEFT: save_pretrained(..., path_initial_model_for_weight_conversion=...)",
        )


def _modules(config: ModelConfig, sources: Mapping[str, tuple[str, ...]]) -> dict[str, _Module]:
    """Every tensor of the base model by its names in Hugging Face form."""
    found: dict[str, _Module] = {}
    for weight, shape in weight_shapes(config).items():
        start = 0
        for tensor, rows in zip(sources[weight], part_rows(config, weight, n_parts=len(sources[weight])), strict=True):
            end = start + (rows or shape[0])
            module = _Module(weight, start, end, (end - start, *shape[1:]))
            found |= dict.fromkeys((tensor, *_wrapped(tensor)), module)
            start = end
    return found


def _wrapped(tensor: str) -> tuple[str, ...]:
    """The names of a tensor in multimodal models whose text model is the base; the second is that of older ones."""
    if not tensor.startswith("model."):
        return (f"language_model.{tensor}",)
    return f"model.language_model.{tensor.removeprefix('model.')}", f"language_model.{tensor}"


def _replacements(shard: Shard, modules: Mapping[str, _Module], fields: Fields) -> Iterator[_Replacement]:
    for name in _others(shard):
        tensor = name.removeprefix(_PREFIX).replace(".base_layer.", ".")
        if not name.startswith(_PREFIX) or tensor not in modules:
            raise _unknown(name, tensor, fields)
        _check_shape(shard, name, modules[tensor].shape, fields)
        yield _Replacement(modules[tensor], _located(shard, name))


def _others(shard: Shard) -> list[str]:
    return sorted(name for name in shard.tensors if not name.endswith(tuple(_FORMS)))


def _updates(shard: Shard, modules: Mapping[str, _Module], fields: Fields) -> Iterator[_Update]:
    pairs: dict[str, dict[str, str]] = {}
    for name in sorted(set(shard.tensors) - set(_others(shard))):
        suffix = next(each for each in _FORMS if name.endswith(each))
        pairs.setdefault(name.removesuffix(suffix), {})[_FORMS[suffix]] = name
    for path, names in pairs.items():
        module = path.removeprefix(_PREFIX)
        first = min(names.values())
        if not path.startswith(_PREFIX) or f"{module}.weight" not in modules:
            raise _unknown(first, f"{module}.weight", fields)
        yield _update(shard, names, module, modules[f"{module}.weight"], fields)


def _update(shard: Shard, names: Mapping[str, str], module: str, place: _Module, fields: Fields) -> _Update:
    kinds = sorted(names)
    if kinds not in (["A", "B"], ["embedding A", "embedding B"]):
        raise CorruptError(f"{WEIGHTS}: {min(names.values())}: stands alone, and A and B belong together", _AGAIN)
    a, b = (names[kind] for kind in kinds)
    is_embedding = kinds[0] != "A"
    n_out, n_in = place.shape if not is_embedding else place.shape[::-1]
    rank, scale = _rank_and_scale(module, fields)
    _check_shape(shard, a, (rank, n_in), fields)
    _check_shape(shard, b, (n_out, rank), fields)
    return _Update(place, scale, _located(shard, a), _located(shard, b), is_embedding)


def _rank_and_scale(module: str, fields: Fields) -> tuple[int, float]:
    ranks, alphas = (_pattern_values(fields, name) for name in ("rank_pattern", "alpha_pattern"))
    rank_key, alpha_key = _matching(ranks, module), _matching(alphas, module)
    rank = fields.integer("r") if rank_key is None else ranks.integer(rank_key)
    alpha = fields.number("lora_alpha", minimum=0) if alpha_key is None else alphas.number(alpha_key, minimum=0)
    return rank, alpha / (math.sqrt(rank) if fields.flag("use_rslora", default=False) else rank)


def _pattern_values(fields: Fields, name: str) -> Fields:
    return fields.section(name) if name in fields else Fields({}, CONFIG)


def _matching(patterns: Fields, module: str) -> str | None:
    """The first pattern that matches the end of a module's name, as PEFT matches it; None if none does."""
    for pattern in patterns:
        is_simple = len(pattern) <= _LONGEST_PATTERN and len(re.findall(r"[*+?{]", pattern)) <= _MOST_QUANTIFIERS
        if not is_simple or re.search(r"\)[*+?{]", pattern):
            raise patterns.corrupt(repr(pattern[:_LONGEST_PATTERN]), "is too complex a pattern")
        try:
            if re.match(rf"(.*\.)?({pattern})$", module):
                return pattern
        except re.error as error:
            raise patterns.corrupt(repr(pattern), f"is no regular expression: {error}") from error
    return None


def _check_complete(fields: Fields, modules: Mapping[str, _Module], changed: set[_Module]) -> None:
    """Raise CorruptError if a module that the config names has no tensors: a file may have lost some."""
    wanted = _listed(fields, "modules_to_save")
    if not any(fields.values.get(name) for name in ("layers_to_transform", "exclude_modules")):
        wanted += _listed(fields, "target_modules")
    for tensor, module in modules.items():
        path = tensor.removesuffix(".weight")
        is_wanted = tensor.endswith(".weight") and any(path == each or path.endswith(f".{each}") for each in wanted)
        if is_wanted and module not in changed:
            raise CorruptError(f"{WEIGHTS}: has no tensors of {path}, and {CONFIG} names it", _AGAIN)


def _listed(fields: Fields, name: str) -> tuple[str, ...]:
    """The names of a list; none if it is missing, or a pattern."""
    return fields.texts(name) if isinstance(fields.values.get(name), list) else ()


def _located(shard: Shard, name: str) -> LocatedTensor:
    tensor = shard.tensor(name)
    if not tensor.is_floating_point():
        raise CorruptError(f"{WEIGHTS}: {name}: is of {shard.tensors[name].dtype}, not floating point", _AGAIN)
    return LocatedTensor(f"{WEIGHTS}: {name}", tensor)


def _check_shape(shard: Shard, name: str, wanted: tuple[int, ...], fields: Fields) -> None:
    found = shard.tensors[name].shape
    if found != wanted:
        raise UsageError(
            f"{WEIGHTS}: {name}: shape is {list(found)}, and the base model and {CONFIG} make it {list(wanted)}.",
            _other_base(fields),
        )


def _unknown(name: str, tensor: str, fields: Fields) -> UsageError:
    if re.search(r"\.(lora_|token_adapter\.)", tensor):
        return UsageError(f"{WEIGHTS}: {name}: gptfast does not merge tensors of this kind.", _MERGE_WITH_PEFT)
    if tensor == "lm_head.weight":
        return UsageError(f"{WEIGHTS}: {name}: in the base model the head is tied to the embedding.", _MERGE_WITH_PEFT)
    return UsageError(f"{WEIGHTS}: {name}: the base model has no such tensor.", _other_base(fields))


def _other_base(fields: Fields) -> str:
    base = fields.text("base_model_name_or_path", "")
    return f"The adapter was trained on {base}." if base else "The adapter is for another base model."
