"""The manifest of a checkpoint, `gptfast.json`: the model's config, each tensor with its hash, and the source.

It lists the model's shape, every weight with its scheme and stored tensors, their SHA-256, the tokenizer's files and
special tokens, and the provenance. It is written last: a folder with a manifest is complete.
"""

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from dataclasses import fields as fields_of
from pathlib import Path
from typing import Any, Final, TypeVar

from gptfast_cli.core.config import (
    MOST_LAYERS,
    Activation,
    AttentionSpec,
    FeedForwardSpec,
    LayerSpec,
    LinearScaling,
    Llama3Scaling,
    LlamaSizes,
    LongRopeScaling,
    ModelConfig,
    NormPlacement,
    ProportionalScaling,
    QKNorm,
    QueryScaling,
    RopeConfig,
    RopeScaling,
    YarnScaling,
)
from gptfast_cli.core.errors import UsageError
from gptfast_cli.core.fields import Fields, read_fields

T = TypeVar("T")

_SCALINGS: Final[Mapping[str, type[RopeScaling]]] = {
    "linear": LinearScaling,
    "llama3": Llama3Scaling,
    "yarn": YarnScaling,
    "longrope": LongRopeScaling,
    "proportional": ProportionalScaling,
}


def config_to_json(config: ModelConfig) -> dict[str, Any]:
    """The config as JSON values; `config_from_json` reads them back to an equal config.

    kinds:  the different layers
    layers: the number of the kind of each layer
    """
    kinds = [asdict(kind) for kind in config.kinds]
    for form, kind in zip(kinds, config.kinds, strict=True):
        if kind.attention.rope is not None and (scaling := kind.attention.rope.scaling) is not None:
            name = next(name for name, of_name in _SCALINGS.items() if isinstance(scaling, of_name))
            form["attention"]["rope"]["scaling"] = {"type": name} | asdict(scaling)
    form = {each.name: getattr(config, each.name) for each in fields_of(config)}
    return form | {"kinds": kinds, "layers": [config.kinds.index(layer) for layer in config.layers]}


def config_from_json(fields: Fields) -> ModelConfig:
    """The config of a manifest's `config` object; raises CorruptError that names the invalid field."""
    if "kinds" not in fields:
        return _first_format(fields)
    kinds = [_layer(kind) for kind in fields.sections("kinds")]
    numbers = fields.integers("layers")
    if not numbers or len(numbers) > MOST_LAYERS or max(numbers) >= len(kinds):
        raise fields.corrupt("layers", f"is no list of up to {MOST_LAYERS:,} numbers below {len(kinds)}")
    return ModelConfig(
        family=fields.text("family"),
        layers=tuple(kinds[number] for number in numbers),
        dim=fields.integer("dim"),
        vocab_size=fields.integer("vocab_size"),
        max_context=fields.integer("max_context"),
        norm_eps=fields.number("norm_eps"),
        tied_embeddings=fields.flag("tied_embeddings"),
        norm_offset=fields.number("norm_offset", minimum=0),
        embedding_scale=fields.number("embedding_scale"),
        logit_scale=fields.number("logit_scale"),
        logit_softcap=_optional(fields, "logit_softcap", fields.number),
    )


def _layer(layer: Fields) -> LayerSpec:
    attention, feed_forward = layer.section("attention"), layer.section("feed_forward")
    return LayerSpec(
        AttentionSpec(
            n_heads=attention.integer("n_heads"),
            n_kv_heads=_n_kv_heads(attention),
            head_dim=attention.integer("head_dim"),
            rope=_rope(attention.section("rope")) if "rope" in attention else None,
            window=_optional(attention, "window", attention.integer),
            scale=_optional(attention, "scale", attention.number),
            softcap=_optional(attention, "softcap", attention.number),
            qk_norm=attention.choice("qk_norm", QKNorm) if "qk_norm" in attention else None,
            qkv_bias=attention.flag("qkv_bias"),
            output_bias=attention.flag("output_bias"),
            query_scaling=(
                _record(QueryScaling, attention.section("query_scaling")) if "query_scaling" in attention else None
            ),
        ),
        FeedForwardSpec(
            dim=feed_forward.integer("dim"),
            activation=feed_forward.choice("activation", Activation),
            bias=feed_forward.flag("bias"),
        ),
        norms=layer.choice("norms", NormPlacement),
        residual_scale=layer.number("residual_scale"),
    )


def _optional(fields: Fields, name: str, read: Callable[[str], T]) -> T | None:
    return read(name) if name in fields else None


def _n_kv_heads(fields: Fields) -> int:
    n_heads, n_kv_heads = fields.integer("n_heads"), fields.integer("n_kv_heads")
    if n_heads % n_kv_heads:
        raise fields.corrupt("n_kv_heads", f"{n_heads} query heads cannot share {n_kv_heads}")
    return n_kv_heads


def _rope(rope: Fields) -> RopeConfig:
    scaling = _scaling(rope.section("scaling")) if "scaling" in rope else None
    return RopeConfig(rope.number("theta"), scaling, _optional(rope, "rotary_dim", rope.integer))


def _scaling(scaling: Fields) -> RopeScaling:
    name = scaling.text("type")
    if name not in _SCALINGS:
        raise scaling.corrupt("type", f"{name!r} is no RoPE scaling that this version knows")
    return _record(_SCALINGS[name], scaling)


def _record(record: type[T], fields: Fields) -> T:
    """A dataclass whose fields are numbers, flags or tuples of numbers."""
    readers: Mapping[Any, Callable[[str], object]] = {
        int: fields.integer,
        float: fields.number,
        bool: fields.flag,
        tuple[float, ...]: fields.numbers,
    }
    return record(**{each.name: readers[each.type](each.name) for each in fields_of(record)})  # type: ignore[arg-type]


def _first_format(fields: Fields) -> ModelConfig:
    """The config of a manifest of format 1, which described a Llama by its sizes."""
    return LlamaSizes(
        n_layers=fields.integer("n_layers", maximum=MOST_LAYERS),
        dim=fields.integer("dim"),
        n_heads=fields.integer("n_heads"),
        n_kv_heads=_n_kv_heads(fields),
        head_dim=fields.integer("head_dim"),
        ffn_dim=fields.integer("ffn_dim"),
        vocab_size=fields.integer("vocab_size"),
        max_context=fields.integer("max_context"),
        norm_eps=fields.number("norm_eps"),
        rope=_rope(fields.section("rope")),
        tied_embeddings=fields.flag("tied_embeddings"),
        attention_bias=fields.flag("attention_bias"),
        ffn_bias=fields.flag("ffn_bias"),
    ).config()


_CHUNK_BYTES = 1 << 24


def sha256_of(path: Path, start: int = 0, end: int | None = None) -> str:
    """Hexadecimal SHA-256 of bytes `start` to `end` of a file (default: to its end)."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        left = (path.stat().st_size if end is None else end) - file.seek(start)
        while left > 0 and (chunk := file.read(min(_CHUNK_BYTES, left))):
            digest.update(chunk)
            left -= len(chunk)
    return digest.hexdigest()


MANIFEST_FILE = "gptfast.json"
FORMAT = 2

# manifests are untrusted input: file names must stay inside the folder
_PLAIN_NAME = re.compile(r"(?!\.)[\w.-]+")
_TOKENIZER_FILE_NAME = re.compile(r"([\w-]+/)?(?!\.)[^/\\:\x00-\x1f]+")

_BITS = {"F64": 64, "I64": 64, "F32": 32, "I32": 32, "F16": 16, "BF16": 16, "I16": 16, "I8": 8, "U8": 8} | {
    "F8_E4M3": 8,
    "F8_E8M0": 8,
}


@dataclass(frozen=True, slots=True)
class ManifestTensor:
    """A stored tensor: its shard file, safetensors dtype code such as BF16, shape, and SHA-256 of its bytes."""

    file: str
    dtype: str
    shape: tuple[int, ...]
    sha256: str

    @property
    def n_bytes(self) -> int:
        """Bytes of the tensor."""
        return math.prod(self.shape) * _BITS[self.dtype] // 8


@dataclass(frozen=True, slots=True)
class ManifestWeight:
    """A stored weight: scheme, logical shape, and its tensors by part name."""

    scheme: str
    shape: tuple[int, ...]
    parts: Mapping[str, ManifestTensor]


@dataclass(frozen=True, slots=True)
class TokenizerEntry:
    """The tokenizer: SHA-256 of its files by relative path, and its special tokens as ids."""

    files: Mapping[str, str]
    bos_id: int | None
    stop_ids: tuple[int, ...]
    add_bos: bool


@dataclass(frozen=True, slots=True)
class CalibrationText:
    """The calibration text of a quantizer, with a sketch to detect overlap with evaluation texts.

    source: "bundled", the name of a file, or names of tasks
    sha256: of the whole text in UTF-8
    tokens: number of tokens used
    sketch: hashes of word n-grams, see `evals.held_out.sketch`
    """

    source: str
    sha256: str
    tokens: int
    sketch: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class AdapterEntry:
    """A LoRA adapter that was merged into the weights: its name, and the SHA-256 of its files."""

    name: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Provenance:
    """The source of a checkpoint.

    source:      the repository or the name of the folder that was converted
    revision:    commit of a Hugging Face snapshot, else None
    writer:      program and version that wrote the checkpoint
    rounding:    name of the quantizer; None for unquantized weights
    calibration: calibration text of the quantizer; None if it uses none
    recipe:      SHA-256 of the source's fingerprint and of all options that affect the bytes; None if not known
    adapter:     LoRA adapter that was merged into the weights; None if there is none
    format:      how the source's matrices were quantized, in the words of their format; None if they were not
    """

    source: str
    revision: str | None
    writer: str
    rounding: str | None = None
    calibration: CalibrationText | None = None
    recipe: str | None = None
    adapter: AdapterEntry | None = None
    format: str | None = None


@dataclass(frozen=True, slots=True)
class Manifest:
    """The contents of `gptfast.json`; `dtype` is the compute dtype, such as bfloat16.

    generation_config: the source's generation_config.json, empty if it has none; None: an earlier version wrote the
                       manifest without it
    """

    name: str
    config: ModelConfig
    dtype: str
    weights: Mapping[str, ManifestWeight]
    tokenizer: TokenizerEntry | None
    provenance: Provenance
    generation_config: Mapping[str, Any] | None = None

    @property
    def n_bytes(self) -> int:
        """Bytes of all weights as stored."""
        return sum(part.n_bytes for weight in self.weights.values() for part in weight.parts.values())

    @property
    def n_params(self) -> int:
        """Parameters of the model; a tied head counts once."""
        return sum(math.prod(weight.shape) for weight in self.weights.values())

    @property
    def scheme(self) -> str:
        """The scheme of the layers' matrices; several are joined by `+`, most parameters first.

        That of weights that another program quantized is called as there.
        """
        if self.provenance.format is not None:
            return self.provenance.format
        sizes: dict[str, int] = {}
        for name, weight in self.weights.items():
            if name.startswith("layers.") and len(weight.shape) == 2:
                sizes[weight.scheme] = sizes.get(weight.scheme, 0) + math.prod(weight.shape)
        return "+".join(sorted(sizes, key=sizes.__getitem__, reverse=True))

    @property
    def head_scheme(self) -> str:
        """The scheme of the output head (of the embedding if tied)."""
        return self.weights.get("head", self.weights["embedding"]).scheme

    @property
    def stored_as(self) -> str:
        """How the weights are stored, for display: `int8`, or `int4 layers, int8 embedding, plain head`."""
        if self.provenance.format is not None:
            return self.provenance.format
        outer = {name: weight.scheme for name in ("embedding", "head") if (weight := self.weights.get(name))}
        if set(outer.values()) == {self.scheme}:
            return self.scheme
        if len(set(outer.values())) == 1:
            return f"{self.scheme} layers, {self.head_scheme} {' and '.join(outer)}"
        return f"{self.scheme} layers, " + ", ".join(f"{scheme} {name}" for name, scheme in outer.items())

    def to_json(self) -> str:
        """The text of `gptfast.json`, deterministic."""
        form = {"format": FORMAT} | asdict(self) | {"config": config_to_json(self.config)}
        if self.generation_config is None:
            del form["generation_config"]
        return json.dumps(form, indent=1) + "\n"


def tensor_name(weight: str, part: str) -> str:
    """Name of a weight's part in its shard."""
    return f"{weight}.{part}"


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a checkpoint folder.

    Raises CorruptError with file and field, UsageError if a newer gptfast wrote it, FileNotFoundError.
    """
    fields = read_fields(folder / MANIFEST_FILE)
    if fields.integer("format") > FORMAT:
        raise UsageError(
            f"{folder.name}: written in checkpoint format {fields.integer('format')}; this gptfast reads {FORMAT}.",
            "A newer gptfast wrote it: upgrade this one.",
        )
    weights = fields.section("weights")
    if not weights.values:
        raise fields.corrupt("weights", "there are none")
    return Manifest(
        name=fields.text("name"),
        config=config_from_json(fields.section("config")),
        dtype=_dtype(fields),
        weights={name: _weight(weights.section(name)) for name in weights},
        tokenizer=_tokenizer(fields.section("tokenizer")) if "tokenizer" in fields else None,
        provenance=_provenance(fields.section("provenance")),
        generation_config=(fields.section("generation_config").values if "generation_config" in fields else None),
    )


def _dtype(fields: Fields) -> str:
    dtype = fields.text("dtype")
    if dtype not in ("bfloat16", "float16", "float32"):
        raise fields.corrupt("dtype", f"{dtype!r} is not bfloat16, float16 or float32")
    return dtype


def _weight(fields: Fields) -> ManifestWeight:
    parts = fields.section("parts")
    return ManifestWeight(
        fields.text("scheme"), fields.shape("shape"), {name: _part(parts.section(name)) for name in parts}
    )


def _part(fields: Fields) -> ManifestTensor:
    dtype = fields.text("dtype")
    if dtype not in _BITS:
        raise fields.corrupt("dtype", f"{dtype!r} is not one of {', '.join(_BITS)}")
    return ManifestTensor(_file_name(fields), dtype, fields.shape("shape"), _sha256(fields, "sha256"))


def _tokenizer(fields: Fields) -> TokenizerEntry:
    files = fields.section("files")
    return TokenizerEntry(
        files={_tokenizer_file_name(files, name): _sha256(files, name) for name in files},
        bos_id=fields.integer("bos_id", minimum=0) if "bos_id" in fields else None,
        stop_ids=fields.integers("stop_ids"),
        add_bos=fields.flag("add_bos"),
    )


def _provenance(fields: Fields) -> Provenance:
    revision, rounding = (fields.text(name) if name in fields else None for name in ("revision", "rounding"))
    calibration = _calibration(fields.section("calibration")) if "calibration" in fields else None
    recipe = _sha256(fields, "recipe") if "recipe" in fields else None
    adapter = _adapter(fields.section("adapter")) if "adapter" in fields else None
    stored = fields.text("format") if "format" in fields else None
    return Provenance(
        fields.text("source"), revision, fields.text("writer"), rounding, calibration, recipe, adapter, stored
    )


def _adapter(fields: Fields) -> AdapterEntry:
    return AdapterEntry(fields.text("name"), _sha256(fields, "sha256"))


def _calibration(fields: Fields) -> CalibrationText:
    return CalibrationText(
        fields.text("source"), _sha256(fields, "sha256"), fields.integer("tokens"), fields.texts("sketch")
    )


def _file_name(fields: Fields) -> str:
    name = fields.text("file")
    if not _PLAIN_NAME.fullmatch(name):
        raise fields.corrupt("file", f"{name!r} is not the plain name of a file in the folder")
    return name


def _tokenizer_file_name(files: Fields, name: str) -> str:
    if not _TOKENIZER_FILE_NAME.fullmatch(name):
        raise files.corrupt(repr(name), "is not the name of a file in the folder")
    return name


def _sha256(fields: Fields, name: str) -> str:
    digest = fields.text(name)
    if not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise fields.corrupt(name, "not a SHA-256 in hexadecimal")
    return digest
