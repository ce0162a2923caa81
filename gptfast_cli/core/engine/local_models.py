"""The models on this machine, each with what keeps it from running here; read from small files, without PyTorch."""

import struct
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Final

from gptfast_cli.core.checkpoints.gguf_files import scheme_of
from gptfast_cli.core.checkpoints.inventory import Entry, Inventory, files_of, take_inventory
from gptfast_cli.core.checkpoints.quantization_config import CONFIG_FILE, read_quantization_config
from gptfast_cli.core.errors import GptFastError
from gptfast_cli.core.families import gguf_model, read_gguf_model, read_model
from gptfast_cli.core.fields import read_fields
from gptfast_cli.core.files import is_file
from gptfast_cli.core.gguf import SUFFIX, GgufTensor, read_gguf
from gptfast_cli.core.memory import available_memory_bytes
from gptfast_cli.core.quantities import size
from gptfast_cli.core.registry import plug_names
from gptfast_cli.core.settings import Settings

_METHODS: Final = "gptfast_cli.core.checkpoints.methods"
_WEIGHTS: Final = (".safetensors", ".gguf", ".bin", ".pth", ".pt")
"""Endings of files with weights, the first of which that a model has count."""


def find_local_models(settings: Settings) -> Inventory:
    """All models of `take_inventory`, with their parameters and problems."""
    inventory, free_bytes = take_inventory(settings), available_memory_bytes()
    return replace(inventory, entries=tuple(examined(entry, free_bytes) for entry in inventory.entries))


def examined(entry: Entry, free_bytes: int | None) -> Entry:
    """An entry with its parameters, and why it cannot run in so many bytes of memory."""
    if entry.problem is not None:  # of damaged files
        return entry
    try:
        found = _with_header(entry) if entry.path.suffix == SUFFIX else _with_shape(entry)
        return replace(found, problem=_problem(found, free_bytes))
    except (GptFastError, OSError) as error:
        return replace(entry, problem=_first_line(error))


def _with_shape(entry: Entry) -> Entry:
    """An entry with the parameters that its config.json makes; those of a manifest are known."""
    if entry.n_params is not None or not is_file(entry.path / CONFIG_FILE):
        return entry
    return replace(entry, n_params=read_model(read_fields(entry.path / CONFIG_FILE, infinity=True)).config.n_params)


def _with_header(entry: Entry) -> Entry:
    """A model in GGUF files with what their headers say."""
    headers = [read_gguf(file) for file in files_of(entry.path)]
    tensors = {name: (header.path, each) for header in headers for name, each in header.tensors.items()}
    scheme = scheme_of(headers[0].metadata, (tensor for _, tensor in tensors.values()))
    shapes = {name: tensor.shape for name, (_, tensor) in tensors.items()}
    model, _ = read_gguf_model(gguf_model(headers[0].metadata, shapes, lambda name: _floats(*tensors[name])))
    config = model.config
    return replace(entry, family=config.family, scheme=scheme, head_scheme=scheme, n_params=config.n_params)


def _floats(path: Path, tensor: GgufTensor) -> list[float]:
    """The numbers of a small float32 tensor, such as the factors of a RoPE."""
    with path.open("rb") as file:
        file.seek(tensor.start)
        return list(struct.unpack(f"<{tensor.shape[0]}f", file.read(4 * tensor.shape[0])))


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__).removeprefix(f"{CONFIG_FILE}: ")


def _problem(entry: Entry, free_bytes: int | None) -> str | None:
    if entry.scheme is None and entry.path.is_dir():  # no language model
        return None
    declared = read_quantization_config(entry.path) if entry.path.is_dir() else None
    if declared is not None and declared.method.replace("-", "_") not in plug_names(_METHODS):
        return f"weights in the format {declared.method} are not supported."
    n_bytes = _weight_bytes(files_of(entry.path))
    if not n_bytes:
        return "no file with weights is there."
    if free_bytes is not None and n_bytes > free_bytes:
        return f"its weights take {size(n_bytes)}, and {size(free_bytes)} of memory are free."
    return None


def _weight_bytes(files: Iterable[Path]) -> int:
    sizes = dict.fromkeys(_WEIGHTS, 0)
    for file in files:
        if file.suffix in sizes:
            sizes[file.suffix] += file.stat().st_size
    return next((n_bytes for n_bytes in sizes.values() if n_bytes), 0)
