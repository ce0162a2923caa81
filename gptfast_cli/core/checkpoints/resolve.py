"""Resolution of MODEL: a bundled name, a folder, a name in the store or in the Hugging Face cache, or an S3 prefix.

They are tried in that order; a folder with a bundled name is written `./tiny`. Without a name it is the current model,
else the bundled `tiny`.
"""

import difflib
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from gptfast_cli.core.checkpoints.downloads import S3, find_bucket_path, find_snapshot, parse_repo
from gptfast_cli.core.checkpoints.manifest import MANIFEST_FILE, Provenance
from gptfast_cli.core.checkpoints.store import (
    BUNDLED,
    bundled_folder,
    model_names,
    open_store,
    read_current,
    recorded_source,
)
from gptfast_cli.core.errors import GptFastError, NotFoundError, UsageError
from gptfast_cli.core.files import is_file
from gptfast_cli.core.settings import Settings

NO_GGUF: Final = "GGUF files are not read: fetch the model in safetensors form, gptfast download org/name"

_CONFIG_FILE: Final = "config.json"
_GGUF: Final = ".gguf"
_SAFETENSORS: Final = ".safetensors"


@dataclass(frozen=True, slots=True)
class Resolved:
    """A model's folder; `origin`: how it was found, for the `Model:` line."""

    path: Path
    name: str
    origin: str


def resolve(model: str | None, settings: Settings) -> Resolved:
    """The folder of a model. Raises NotFoundError with similar names."""
    if model is not None:
        return _named(model, settings)
    current = read_current(settings.home)
    if current is not None:
        return _current(current, settings)
    return _named(BUNDLED[0], settings)


def source_of(provenance: Provenance, settings: Settings) -> Resolved | None:
    """The model that a checkpoint was made of, if it is on this machine: its recorded folder, else by its name."""
    recorded = recorded_source(settings.home, provenance.recipe)
    revision = "" if provenance.revision is None else f"@{provenance.revision}"
    try:
        named = resolve(f"{provenance.source}{revision}", settings)
    except GptFastError:
        named = None
    if recorded is None or (named is not None and named.path.resolve() == recorded):
        return named
    return Resolved(recorded, str(recorded), "a folder")


def as_path(text: str) -> Path | None:
    """The existing file or folder of a path; None if there is none."""
    path = Path(text).expanduser()
    try:
        return path if path.is_file() or path.is_dir() else None
    except OSError:  # path too long, or not accessible
        return None


def as_folder(text: str) -> Path | None:
    """The existing folder of a path; None if there is none, UsageError for a file."""
    path = as_path(text)
    if path is not None and path.is_file():
        raise UsageError(f"{text}: is a file, but a model is a folder.", _file_hint(path))
    return path


def is_gguf(path: Path) -> bool:
    """Whether a path is a GGUF file, or a folder with one."""
    return path.suffix == _GGUF if is_file(path) else any(path.glob(f"*{_GGUF}"))


def _file_hint(path: Path) -> str:
    """Hint for a file given as MODEL."""
    if is_gguf(path):
        return NO_GGUF
    if is_file(path.parent / MANIFEST_FILE) or (path.suffix == _SAFETENSORS and is_file(path.parent / _CONFIG_FILE)):
        return f"Name its folder: {path.parent}"
    return f"Convert it: gptfast convert {shlex.quote(str(path))}"


def _named(model: str, settings: Settings) -> Resolved:
    if not model.strip():
        raise UsageError("The name of the model is empty.", "List the models: gptfast --list")
    if model in BUNDLED:
        return Resolved(bundled_folder(model), model, "bundled")
    folder = as_folder(model)
    if folder is not None:
        return Resolved(folder, model, "a folder")
    stored = open_store(settings).find(model)
    if stored is not None:
        return Resolved(stored, model, "in the store")
    snapshot = find_snapshot(settings.hf_cache, model)
    if snapshot is not None:
        return Resolved(snapshot.path, model, "in the Hugging Face cache")
    fetched = find_bucket_path(settings.home, model)
    if fetched is not None:
        return Resolved(fetched, model, "downloaded from S3")
    raise _unknown(model, settings)


def _current(current: str, settings: Settings) -> Resolved:
    """The current model as recorded: never a relative folder or a bundled model of the same name."""
    path = _absolute_folder(current) or open_store(settings).find(current) or find_bucket_path(settings.home, current)
    snapshot = find_snapshot(settings.hf_cache, current)
    if path is None and snapshot is not None:
        path = snapshot.path
    if path is None:
        raise NotFoundError(
            f"{current}: the current model no longer exists.",
            "Name another with --model, such as --model tiny, or list the models: gptfast --list",
        )
    return Resolved(path, current, "current model")


def _absolute_folder(text: str) -> Path | None:
    path = Path(text)
    return path if path.is_absolute() and path.is_dir() else None


def _unknown(model: str, settings: Settings) -> NotFoundError:
    fetch = f"Fetch it: gptfast download {shlex.quote(model)}"
    if model.startswith(S3):
        return NotFoundError(f"{model}: not downloaded from S3 yet.", fetch)
    repo = parse_repo(model)
    is_on_hub = repo is not None and "/" in repo.repo
    if model.startswith((".", "/", "~")) or "\\" in model or (model.count("/") > 1 and not is_on_hub):
        return NotFoundError(f"{model}: there is no such folder.", "List the models: gptfast --list")
    names = model_names(settings)
    nearest = difflib.get_close_matches(model, names) or difflib.get_close_matches(model.partition(":")[0], names)
    meant = f"Did you mean {' or '.join(nearest)}? " if nearest else ""
    otherwise = fetch if is_on_hub else "List the models: gptfast --list"
    return NotFoundError(
        f"model {model!r} not found (looked in folders, the store and the HF cache).", f"{meant}{otherwise}"
    )
