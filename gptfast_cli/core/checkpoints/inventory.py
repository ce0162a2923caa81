"""All named models on this machine: bundled, in the store, in the Hugging Face cache, downloaded from S3.

Only small files are read; no weights, and no PyTorch.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from gptfast_cli.core.checkpoints.downloads import bucket_paths, cached_repos, repo_folder, revisions
from gptfast_cli.core.checkpoints.gguf_files import models_in
from gptfast_cli.core.checkpoints.manifest import MANIFEST_FILE, read_manifest
from gptfast_cli.core.checkpoints.quantization_config import CONFIG_FILE, read_quantization_config
from gptfast_cli.core.checkpoints.resolve import did_you_mean
from gptfast_cli.core.checkpoints.staging import remove_folder
from gptfast_cli.core.checkpoints.store import (
    BUNDLED,
    bundled_folder,
    clear_current,
    forget_source,
    open_store,
    read_current,
)
from gptfast_cli.core.errors import GptFastError, NotFoundError, UsageError
from gptfast_cli.core.fields import read_fields
from gptfast_cli.core.files import is_file
from gptfast_cli.core.gguf import SUFFIX, parse_shard_name
from gptfast_cli.core.settings import Settings

IN_PROGRAM: Final = "bundled"
IN_STORE: Final = "store"
IN_HF_CACHE: Final = "Hugging Face cache"
FROM_S3: Final = "S3"
FOLDER: Final = "folder"

DAMAGED: Final = "damaged"
_PLAIN = "plain"  # NAME of formats.plain, which loads PyTorch


@dataclass(frozen=True, slots=True)
class Entry:
    """A model on this machine.

    where:               one of the five constants above
    path:                its folder, or the first file of a model in GGUF files
    family:              `model_type` of a model that was not converted; None if it is not known
    scheme, head_scheme: of the layers and of the output head; `damaged` if unreadable, None for other kinds of model
    n_bytes:             size of its files
    n_params:            None if it is not known without opening the weights
    is_current:          whether commands use it where none is named
    problem:             why it cannot run here, as far as that is known
    """

    name: str
    where: str
    path: Path
    family: str | None
    scheme: str | None
    head_scheme: str | None
    n_bytes: int
    n_params: int | None
    is_current: bool = False
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Inventory:
    """All entries, the name of the current model, and the size of all files, linked ones counted once."""

    entries: tuple[Entry, ...]
    current: str
    n_bytes: int


def take_inventory(settings: Settings) -> Inventory:
    """All models, bundled ones first; including the current model if it is a folder elsewhere."""
    entries = [
        *(entry_of(name, IN_PROGRAM, bundled_folder(name)) for name in BUNDLED),
        *(entry_of(stored.name, IN_STORE, stored.path) for stored in open_store(settings).entries()),
        *(
            entry
            for repo in cached_repos(settings.hf_cache)
            for name, path in revisions(settings.hf_cache, repo)
            for entry in _entries_in(str(name), IN_HF_CACHE, path)
        ),
        *(entry for source, path in bucket_paths(settings.home) for entry in _entries_in(str(source), FROM_S3, path)),
    ]
    current = read_current(settings.home) or BUNDLED[0]
    if Path(current).is_absolute() and Path(current) not in {entry.path for entry in entries}:
        entries.append(entry_of(current, FOLDER, Path(current)))
    files = {file.resolve() for entry in entries for file in files_of(entry.path)}
    names = [(entry.name.lower(), str(entry.path).lower()) for entry in entries]
    marked = (replace(entry, is_current=current.lower() in own) for entry, own in zip(entries, names, strict=True))
    return Inventory(tuple(marked), current, sum(file.stat().st_size for file in files))


def find_entries(inventory: Inventory, name: str) -> tuple[Entry, ...]:
    """The entries to delete for a name: one, or all revisions of a repository in the Hugging Face cache.

    Raises NotFoundError if there is none, UsageError for a model that cannot be removed.
    """
    repo = name.removeprefix("hf://")
    whole = re.split("[@:]", repo, maxsplit=1)[0]
    named = [entry for entry in inventory.entries if entry.name.lower() in (name.lower(), repo.lower())]
    in_cache = (each for each in inventory.entries if each.where == IN_HF_CACHE)
    revised = [each for each in in_cache if each.name.startswith((f"{repo}@", f"{repo}:"))]
    entries = tuple(dict.fromkeys((*named, *revised)))
    if not entries:
        raise NotFoundError(f"model {name!r} not found.", did_you_mean(name, [each.name for each in inventory.entries]))
    if entries[0].where == IN_PROGRAM:
        raise UsageError(f"{name} comes with gptfast and cannot be removed.")
    if entries[0].where == FOLDER:
        raise UsageError(f"{name} is a folder outside of the store, which gptfast does not remove.")
    if entries[0].where == IN_HF_CACHE and repo != whole:
        raise UsageError(
            f"{name}: revisions and files of a repository can only be removed together.", f"gptfast --remove {whole}"
        )
    inside = [each.name for each in inventory.entries if entries[0].path in each.path.parents]
    if inside:
        raise UsageError(
            f"{name}: its folder also contains {inside[0]}.", f"Remove that first: gptfast --remove {inside[0]}"
        )
    return entries


def remove(entries: Iterable[Entry], settings: Settings) -> None:
    """Delete entries and the records of their sources, and clear the current model if it is among them."""
    entries = tuple(entries)
    recipes = {_recipe(entry.path) for entry in entries if not entry.path.is_symlink()}
    for entry in entries:
        if entry.where == IN_HF_CACHE:
            folder = repo_folder(settings.hf_cache, re.split("[@:]", entry.name, maxsplit=1)[0])
        else:
            folder = entry.path
        if (current := read_current(settings.home)) is not None and current.lower() == entry.name.lower():
            clear_current(settings.home)
        if folder.exists() or folder.is_symlink():  # revisions of a repository go together
            remove_folder(folder)
    remaining = {_recipe(entry.path) for entry in take_inventory(settings).entries}
    for recipe in recipes - remaining:  # a copy of a checkpoint shares its record
        forget_source(settings.home, recipe)


def _recipe(path: Path) -> str | None:
    """The recipe in a checkpoint's manifest; None if there is none or it is unreadable."""
    try:
        return read_manifest(path).provenance.recipe if is_file(path / MANIFEST_FILE) else None
    except (GptFastError, OSError):
        return None


def entry_of(name: str, where: str, path: Path) -> Entry:
    """The entry of a model's folder or GGUF file, readable or damaged."""
    n_bytes = sum(file.stat().st_size for file in files_of(path))
    if path.suffix == SUFFIX:
        return Entry(name, where, path, None, None, None, n_bytes, None)
    try:
        if is_file(path / MANIFEST_FILE):
            manifest = read_manifest(path)
            family, n_params = manifest.config.family, manifest.n_params
            return Entry(name, where, path, family, manifest.scheme, manifest.head_scheme, n_bytes, n_params)
        scheme = _foreign_scheme(path)
        return Entry(name, where, path, _foreign_family(path), scheme, scheme, n_bytes, None)
    except (GptFastError, OSError) as error:  # it still has to be seen, to be removed
        return Entry(name, where, path, None, DAMAGED, DAMAGED, n_bytes, None, problem=str(error).partition("\n")[0])


def _entries_in(name: str, where: str, folder: Path) -> Iterator[Entry]:
    """The entry of a folder, and one for each of the models in GGUF files there, as `NAME:TYPE` or `NAME:FILE`."""
    models = models_in(folder)
    if not models or is_file(folder / CONFIG_FILE):
        yield entry_of(name, where, folder)
    n_called = Counter(model.label for model in models)
    for model in models:
        choice = model.label if n_called[model.label] == 1 else model.names[0]
        yield entry_of(f"{name}:{choice}", where, folder / model.names[0])


def _foreign_scheme(path: Path) -> str | None:
    """The scheme of a folder without a manifest; None if it holds no language model."""
    if not is_file(path / CONFIG_FILE):
        return None
    declared = read_quantization_config(path)
    return _PLAIN if declared is None else str(declared)


def _foreign_family(path: Path) -> str | None:
    """`model_type` in a folder's config.json, that of the text model if it has one."""
    if not is_file(path / CONFIG_FILE):
        return None
    fields = read_fields(path / CONFIG_FILE, infinity=True)
    text = fields.section("text_config") if "text_config" in fields else fields
    return text.text("model_type", "") or fields.text("model_type", "") or None


def files_of(path: Path) -> list[Path]:
    """The files of a folder, without dangling links; of a model in GGUF files all of them."""
    if path.suffix == SUFFIX:
        shard = parse_shard_name(path.name)
        names = [path.name] if shard is None else shard.siblings()
        return [file for name in names if is_file(file := path.with_name(name))]
    return [file for file in path.rglob("*") if is_file(file)]
