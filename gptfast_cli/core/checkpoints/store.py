"""The store of models below `$GPTFAST_HOME`, the current model, and the names of models.

A name maps to one folder, `org--name@variant` in lower case: the same on case-insensitive file systems, and never
outside of the store. The manifest keeps the name as it was given.

`$GPTFAST_HOME/current` holds one line: a name in the store, or the absolute path of a folder. `sources/RECIPE` holds
the path of the folder that a checkpoint was made of: a manifest may be shared, and contains no paths of this machine.
"""

import contextlib
import importlib.resources
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from gptfast_cli.core.checkpoints.downloads import cached_repos
from gptfast_cli.core.checkpoints.manifest import MANIFEST_FILE, read_manifest
from gptfast_cli.core.errors import GptFastError, UsageError
from gptfast_cli.core.events import Job, Note
from gptfast_cli.core.files import is_file, is_folder, why_not_writable, write_whole
from gptfast_cli.core.settings import Settings

DAMAGED = "damaged"

_MAX_NAME = 200  # file systems take 255 bytes
_NAME = re.compile(r"[\w.+-]+(/[\w.+-]+)?(:[\w.+-]+)?", re.ASCII)
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?")  # on Windows, with any extension


@dataclass(frozen=True, slots=True)
class StoreEntry:
    """A checkpoint in the store; scheme `damaged` if its manifest is unreadable."""

    name: str
    path: Path
    n_bytes: int
    scheme: str
    n_params: int


@dataclass(frozen=True, slots=True)
class Store:
    """The checkpoints under `$GPTFAST_HOME/checkpoints`."""

    home: Path

    def folder(self, name: str) -> Path:
        """The folder of a name, existing or not. Raises UsageError for an invalid name."""
        folder = _folder_name(name)
        if folder is None:
            raise UsageError(
                f"{name!r} cannot be the name of a checkpoint.",
                "A name is org/name or org/name:variant, of letters, digits, dots, dashes and underscores.",
            )
        return self.home / "checkpoints" / folder

    def find(self, name: str) -> Path | None:
        """The folder of an existing checkpoint, or None."""
        folder = _folder_name(name)
        if folder is None or not is_file(self.home / "checkpoints" / folder / MANIFEST_FILE):
            return None
        return self.home / "checkpoints" / folder

    def entries(self) -> tuple[StoreEntry, ...]:
        """All checkpoints, by name."""
        root = self.home / "checkpoints"
        folders = [path for path in root.iterdir() if not path.name.startswith(".")] if is_folder(root) else []
        entries = [_entry(folder) for folder in folders if is_file(folder / MANIFEST_FILE)]
        return tuple(sorted(entries, key=lambda entry: entry.name.lower()))


def open_store(settings: Settings) -> Store:
    """The store of these settings."""
    return Store(settings.home)


def store_name(text: str) -> str:
    """A store name from a folder name: invalid characters become dashes."""
    name = re.sub(r"-{2,}", "-", re.sub(r"[^\w.+-]", "-", text, flags=re.ASCII))[:100].strip("-.")
    return name if _folder_name(name) is not None else f"model-{name}".rstrip("-")


def _folder_name(name: str) -> str | None:
    words = re.split(r"[/:]", name.lower())
    if not _NAME.fullmatch(name) or "--" in name or len(name) > _MAX_NAME:
        return None
    if any(word[0] in ".-" or word[-1] in ".-" or _RESERVED.fullmatch(word) for word in words):
        return None
    return name.lower().replace("/", "--").replace(":", "@")


def _entry(folder: Path) -> StoreEntry:
    name = folder.name.replace("--", "/").replace("@", ":")
    try:
        manifest = read_manifest(folder)
    except (GptFastError, OSError):  # listed, so that it can be removed
        n_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        return StoreEntry(name, folder, n_bytes, DAMAGED, 0)
    if _folder_name(manifest.name) == folder.name:  # unless the user has copied or renamed the folder
        name = manifest.name
    return StoreEntry(name, folder, manifest.n_bytes, manifest.scheme, manifest.n_params)


OTHER_HOME: Final = "GPTFAST_HOME can name another folder."

_FILE = "current"


def read_current(home: Path) -> str | None:
    """The name or absolute path of the current model, or None."""
    try:
        text = (home / _FILE).read_text(encoding="utf-8").rstrip("\r\n")  # an S3 prefix may end with a space
    except OSError:  # there is none, or the home is not accessible
        return None
    return text if text.strip() else None


def make_current(home: Path, model: str | Path) -> Job[bool]:
    """Make a model the current one. If the home is not writable, yield a note and return False."""
    reason = why_not_writable(home)
    if reason is not None:
        yield Note(f"{home} is not writable ({reason}), so the current model is unchanged. {OTHER_HOME}")
        return False
    write_current(home, model)
    return True


def write_current(home: Path, model: str | Path) -> None:
    """Make a model the current one: a name in the store, or a folder's path."""
    write_whole(home / _FILE, f"{model.resolve() if isinstance(model, Path) else model}\n")


def clear_current(home: Path) -> None:
    """Clear the current model."""
    (home / _FILE).unlink(missing_ok=True)


def record_source(home: Path, recipe: str | None, source: Path) -> None:
    """Record the folder or file that a checkpoint was made of, by the recipe in its manifest; if home is writable."""
    if recipe is not None:
        with contextlib.suppress(OSError):
            write_whole(home / "sources" / recipe, f"{source.resolve()}\n")


def recorded_source(home: Path, recipe: str | None) -> Path | None:
    """The recorded folder or file; None if there is no record, or it no longer exists."""
    try:
        path = Path((home / "sources" / recipe).read_text(encoding="utf-8").rstrip("\n")) if recipe else None
    except OSError:
        return None
    return path if path is not None and path.exists() else None


def forget_source(home: Path, recipe: str | None) -> None:
    """Delete the record of a checkpoint's source, if there is one."""
    if recipe is not None:
        (home / "sources" / recipe).unlink(missing_ok=True)


BUNDLED = ("tiny", "tiny-draft")


def model_names(settings: Settings) -> list[str]:
    """All model names on this machine, without duplicates; folders have none."""
    stored = [entry.name for entry in open_store(settings).entries()]
    return list(dict.fromkeys([*BUNDLED, *stored, *cached_repos(settings.hf_cache)]))


def free_name(name: str) -> str:
    """A store name for a model folder; a bundled name gets a prefix, since it always means the bundled model."""
    return f"model-{name}" if name in BUNDLED else name


def bundled_folder(name: str) -> Path:
    """The folder of a bundled checkpoint inside the installed package."""
    return Path(str(importlib.resources.files("gptfast_cli"))) / "bundled" / name
