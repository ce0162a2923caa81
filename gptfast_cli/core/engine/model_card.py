"""What a person wants to know of a model before it is loaded: its shape, memory, chat template, origin and drafts."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import torch

from gptfast_cli.core.checkpoints.downloads import snapshot_at
from gptfast_cli.core.checkpoints.inventory import FOLDER, FROM_S3, IN_PROGRAM, Entry, entry_of
from gptfast_cli.core.checkpoints.manifest import MANIFEST_FILE, Provenance, read_manifest
from gptfast_cli.core.checkpoints.quantization_config import CONFIG_FILE
from gptfast_cli.core.checkpoints.resolve import resolve, source_of
from gptfast_cli.core.config import ModelConfig
from gptfast_cli.core.device import pick_device
from gptfast_cli.core.engine.load import OpenedModel, open_model
from gptfast_cli.core.engine.local_models import examined, find_local_models
from gptfast_cli.core.errors import CorruptError, GptFastError
from gptfast_cli.core.fields import Fields, read_fields
from gptfast_cli.core.files import is_file
from gptfast_cli.core.memory import available_memory_bytes
from gptfast_cli.core.quantize.sizes import MemoryNeed, memory_need
from gptfast_cli.core.schemes.plain import NAME as PLAIN
from gptfast_cli.core.settings import Settings
from gptfast_cli.core.tokenizers import vocabulary_difference
from gptfast_cli.core.tokenizers.chat.template_files import read_templates

_CONTEXTS: Final = (1024, 8192, 32768)
_FRONT_MATTER: Final = re.compile(r"\A---\s*\n(.*?)\n---", re.DOTALL)
_LICENSE: Final = re.compile(r"^(license|license_name):[ \t]*([^\n#]+)", re.MULTILINE)
_MOST_CARD_CHARACTERS: Final = 20_000


@dataclass(frozen=True, slots=True)
class KnownDraft:
    """A draft at hand; `kind`: "model" of the same vocabulary with fewer parameters, or "head" made for this model."""

    name: str
    kind: str
    n_params: int | None


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """Bytes of the weights in a scheme, and with the KV cache of one sequence by its length in tokens."""

    scheme: str
    weight_bytes: int
    total_bytes: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class ShapeSummary:
    """The sizes of a model; heads and feed-forward are those of its first layer.

    window:           tokens that a layer with a window sees, the widest; 0 if no layer has one
    n_windowed_layers: layers with a window
    """

    n_layers: int
    dim: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    ffn_dim: int
    vocab_size: int
    max_context: int
    window: int
    n_windowed_layers: int
    tied_embeddings: bool


@dataclass(frozen=True, slots=True)
class ModelCard:
    """A model on this machine.

    shape:          None if gptfast cannot read the model; `entry.problem` has the reason
    memory:         as it is stored; of a plain model also quantized
    free_bytes:     memory of the device that is free now; None if it is not known
    chat_templates: names; empty if there is none
    license:        as its makers name it; None if no file here says
    source:         where it comes from; None if nothing records it
    """

    entry: Entry
    shape: ShapeSummary | None
    memory: tuple[MemoryUse, ...]
    device: str
    free_bytes: int | None
    chat_templates: tuple[str, ...]
    license: str | None
    source: str | None
    drafts: tuple[KnownDraft, ...]


def read_card(model: str | None, settings: Settings) -> ModelCard:
    """The card of a MODEL, also of one that cannot run here. Raises what `resolve` raises."""
    found, inventory = resolve(model, settings), find_local_models(settings)
    device = pick_device()
    free_bytes = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_memory_bytes()
    listed = (entry for entry in inventory.entries if entry.path == found.path)
    entry = next(listed, None) or examined(entry_of(found.name, FOLDER, found.path), free_bytes)
    opened = None
    try:
        opened = open_model(found.name, settings, with_padding=True)
        checkpoint = opened.checkpoint
        entry = replace(
            entry, family=checkpoint.config.family, scheme=checkpoint.scheme, n_params=checkpoint.config.n_params
        )
    except GptFastError as error:
        entry = replace(entry, problem=entry.problem or error.message.partition("\n")[0])
    folder = found.path if found.path.is_dir() else found.path.parent
    provenance = read_manifest(folder).provenance if is_file(folder / MANIFEST_FILE) and opened is not None else None
    return ModelCard(
        entry=entry,
        shape=None if opened is None else _shape(opened.config),
        memory=() if opened is None else tuple(_memory(opened)),
        device=str(device),
        free_bytes=free_bytes,
        chat_templates=_templates(folder),
        license=_license(entry, folder, provenance, settings),
        source=_source(entry, provenance),
        drafts=() if opened is None else tuple(_drafts(entry, opened, provenance, inventory.entries, settings)),
    )


def _shape(config: ModelConfig) -> ShapeSummary:
    first, windows = config.layers[0], [layer.attention.window for layer in config.layers]
    return ShapeSummary(
        n_layers=config.n_layers,
        dim=config.dim,
        n_heads=first.attention.n_heads,
        n_kv_heads=first.attention.n_kv_heads,
        head_dim=first.attention.head_dim,
        ffn_dim=first.feed_forward.dim,
        vocab_size=config.vocab_size,
        max_context=config.max_context,
        window=config.widest_window,
        n_windowed_layers=sum(window is not None for window in windows),
        tied_embeddings=config.tied_embeddings,
    )


def _memory(opened: OpenedModel) -> Iterator[MemoryUse]:
    checkpoint, config = opened.checkpoint, opened.config
    need = memory_need(config)
    weight_bytes = need.weight_bytes
    if checkpoint.scheme != PLAIN:
        weight_bytes = {checkpoint.scheme: checkpoint.n_bytes}
    contexts = [*(each for each in _CONTEXTS if each < config.max_context), config.max_context]
    for scheme, n_bytes in weight_bytes.items():
        yield MemoryUse(scheme, n_bytes, {each: n_bytes + _kv_bytes(need, each) for each in contexts})


def _kv_bytes(need: MemoryNeed, context: int) -> int:
    n_first = min(context, need.window) if need.window else context
    return n_first * need.kv_bytes_per_token + (context - n_first) * need.kv_bytes_per_later_token


def _templates(folder: Path) -> tuple[str, ...]:
    try:
        return tuple(read_templates(folder))
    except CorruptError:  # generating says what is wrong with it
        return ()


def _source(entry: Entry, provenance: Provenance | None) -> str | None:
    if provenance is not None and entry.where != IN_PROGRAM:
        revision = "" if provenance.revision is None else f" at {provenance.revision[:12]}"
        parts = [f"{provenance.source}{revision}"]
        parts += [] if provenance.rounding is None else [f"quantized by {provenance.rounding}"]
        parts += [] if provenance.adapter is None else [f"with the adapter {provenance.adapter.name}"]
        return f"{', '.join(parts)}; written by {provenance.writer}"
    if (snapshot := snapshot_at(entry.path if entry.path.is_dir() else entry.path.parent)) is not None:
        return f"Hugging Face Hub, {snapshot.repo} at {snapshot.commit[:12]}"
    return {IN_PROGRAM: "comes with gptfast", FROM_S3: entry.name}.get(entry.where)


def _license(entry: Entry, folder: Path, provenance: Provenance | None, settings: Settings) -> str | None:
    if entry.where == IN_PROGRAM:
        return "that of gptfast"
    found = _license_in(folder)
    if found is None and provenance is not None and (source := source_of(provenance, settings)) is not None:
        return _license_in(source.path) if source.path.is_dir() else None
    return found


def _license_in(folder: Path) -> str | None:
    """The license in the front matter of a folder's model card, else the first line of its license file."""
    if (front := _FRONT_MATTER.match(_text(folder / "README.md"))) is not None:
        named = {key: value.strip().strip("'\"") for key, value in _LICENSE.findall(front[1])}
        if named:
            return str(named.get("license_name") or named["license"])
    lines = (line.strip() for file in sorted(folder.glob("LICENSE*")) for line in _text(file).splitlines())
    return next((line for line in lines if line), None)


def _text(file: Path) -> str:
    if not is_file(file):
        return ""
    with file.open(encoding="utf-8", errors="replace") as stream:
        return stream.read(_MOST_CARD_CHARACTERS)


def _drafts(
    entry: Entry, opened: OpenedModel, provenance: Provenance | None, entries: Iterable[Entry], settings: Settings
) -> Iterator[KnownDraft]:
    """Smaller models of the same vocabulary, and heads that name this model as the one that they draft for."""
    snapshot = snapshot_at(entry.path)
    names = {entry.name.lower(), *([] if provenance is None else [provenance.source.lower()])}
    names |= set() if snapshot is None else {snapshot.repo.lower()}
    for other in entries:
        if other.path == entry.path or not other.path.is_dir():
            continue
        if (verifier := _verifier(other.path)) is not None:
            if verifier.lower() in names:
                yield KnownDraft(other.name, "head", other.n_params)
        elif _is_smaller(other, opened.config.n_params) and _has_vocabulary_of(opened, other, settings):
            yield KnownDraft(other.name, "model", other.n_params)


def _is_smaller(other: Entry, n_params: int) -> bool:
    return other.problem is None and other.n_params is not None and other.n_params < n_params


def _verifier(folder: Path) -> str | None:
    """The model that a draft head was trained for, from its config.json; None for any other model."""
    try:
        fields: Fields | None = read_fields(folder / CONFIG_FILE, infinity=True)
        for key in ("speculators_config", "verifier"):
            fields = fields.section(key) if fields is not None and key in fields else None
        return None if fields is None else fields.text("name_or_path", "") or None
    except (GptFastError, OSError):
        return None


def _has_vocabulary_of(opened: OpenedModel, other: Entry, settings: Settings) -> bool:
    try:
        theirs = open_model(other.name, settings, with_padding=True).tokenizer
        ours = opened.tokenizer
        return ours is not None and theirs is not None and vocabulary_difference(ours, theirs) is None
    except GptFastError:
        return False
