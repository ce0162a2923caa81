"""All named models on this machine: bundled, in the store, in the Hugging Face cache, downloaded from S3.

Only small files are read; no weights, and no PyTorch.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from gptfast_cli.core.checkpoints.downloads import bucket_paths, cached_repos, repo_folder, revisions
from gptfast_cli.core.checkpoints.manifest import MANIFEST_FILE, read_manifest
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
from gptfast_cli.core.settings import Settings

IN_PROGRAM: Final = "bundled"
IN_STORE: Final = "store"
IN_HF_CACHE: Final = "Hugging Face cache"
FROM_S3: Final = "S3"
FOLDER: Final = "folder"

_CONFIG_FILE = "config.json"
_DAMAGED = "damaged"
_PLAIN = "plain"  # NAME of formats.plain, which loads PyTorch


@dataclass(frozen=True, slots=True)
class Entry:
    """A model on this machine.

    where:               one of the five constants above
    scheme, head_scheme: of the layers and of the output head; `damaged` if unreadable, None for other kinds of model
    n_bytes:             size of its files
    n_params:            None if it is not known without opening the weights
    is_current:          whether commands use it where none is named
    """

    name: str
    where: str
    path: Path
    scheme: str | None
    head_scheme: str | None
    n_bytes: int
    n_params: int | None
    is_current: bool = False


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
            entry_of(str(name), IN_HF_CACHE, path)
            for repo in cached_repos(settings.hf_cache)
            for name, path in revisions(settings.hf_cache, repo)
        ),
        *(entry_of(str(source), FROM_S3, path) for source, path in bucket_paths(settings.home)),
    ]
    current = read_current(settings.home) or BUNDLED[0]
    if Path(current).is_absolute() and Path(current) not in {entry.path for entry in entries}:
        entries.append(entry_of(current, FOLDER, Path(current)))
    files = {file.resolve() for entry in entries for file in _files(entry.path)}
    names = [(entry.name.lower(), str(entry.path).lower()) for entry in entries]
    marked = (replace(entry, is_current=current.lower() in own) for entry, own in zip(entries, names, strict=True))
    return Inventory(tuple(marked), current, sum(file.stat().st_size for file in files))


def find_entries(inventory: Inventory, name: str) -> tuple[Entry, ...]:
    """The entries to delete for a name: one, or all revisions of a repository in the Hugging Face cache.

    Raises NotFoundError if there is none, UsageError for a model that cannot be removed.
    """
    repo = name.removeprefix("hf://")
    named = [entry for entry in inventory.entries if entry.name.lower() in (name.lower(), repo.lower())]
    revised = [each for each in inventory.entries if each.where == IN_HF_CACHE and each.name.startswith(f"{repo}@")]
    entries = tuple(dict.fromkeys((*named, *revised)))
    if not entries:
        raise NotFoundError(f"model {name!r} not found.", "List the models: gptfast --list")
    if entries[0].where == IN_PROGRAM:
        raise UsageError(f"{name} comes with gptfast and cannot be removed.")
    if entries[0].where == FOLDER:
        raise UsageError(f"{name} is a folder outside of the store, which gptfast does not remove.")
    if entries[0].where == IN_HF_CACHE and "@" in repo:
        whole = repo.partition("@")[0]
        raise UsageError(
            f"{name}: revisions share files and can only be removed together.", f"gptfast --remove {whole}"
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
            folder = repo_folder(settings.hf_cache, entry.name.partition("@")[0])
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
    """The entry of a model folder, readable or damaged."""
    n_bytes = sum(file.stat().st_size for file in _files(path))
    try:
        if is_file(path / MANIFEST_FILE):
            manifest = read_manifest(path)
            return Entry(name, where, path, manifest.scheme, manifest.head_scheme, n_bytes, manifest.n_params)
        scheme: str | None = _foreign_scheme(path)
    except (GptFastError, OSError):  # it still has to be seen, to be removed
        scheme = _DAMAGED
    return Entry(name, where, path, scheme, scheme, n_bytes, None)


def _foreign_scheme(path: Path) -> str | None:
    """The scheme of a folder without a manifest; None if it holds no language model."""
    if not is_file(path / _CONFIG_FILE):
        return None
    quantized = read_fields(path / _CONFIG_FILE).values.get("quantization_config")
    if not isinstance(quantized, dict):
        return _PLAIN
    return str(quantized.get("quant_method", "quantized"))


def _files(path: Path) -> Iterator[Path]:
    """The files of a folder, without dangling links."""
    return (file for file in path.rglob("*") if is_file(file))
