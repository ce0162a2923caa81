"""Resolution of MODEL: a bundled name, a folder or GGUF file, a name in the store or the Hugging Face cache, or S3.

They are tried in that order; a folder with a bundled name is written `./tiny`. Without a name it is the current model,
else the bundled `tiny`. One of several GGUF files is named after a colon: `org/name:Q4_K_M`, `folder:file.gguf`.
"""

import difflib
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from gptfast_cli.core.checkpoints.downloads import S3, find_bucket_path, find_snapshot, parse_repo
from gptfast_cli.core.checkpoints.gguf_files import choose, models_in
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
from gptfast_cli.core.gguf import SUFFIX, starts_as_gguf
from gptfast_cli.core.settings import Settings

_CONFIG_FILE: Final = "config.json"
_SAFETENSORS: Final = ".safetensors"


@dataclass(frozen=True, slots=True)
class Resolved:
    """A model's folder or GGUF file; `origin`: how it was found, for the `Model:` line."""

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


def _file_hint(path: Path) -> str:
    """Hint for a file given as MODEL."""
    if is_file(path.parent / MANIFEST_FILE) or (path.suffix == _SAFETENSORS and is_file(path.parent / _CONFIG_FILE)):
        return f"Name its folder: {path.parent}"
    return f"Convert it: gptfast convert {shlex.quote(str(path))}"


def _named(model: str, settings: Settings) -> Resolved:
    if not model.strip():
        raise UsageError("The name of the model is empty.", "List the models: gptfast --list")
    found = _on_disk(model) or _by_name(model, settings) or one_of_several(model, settings)
    if found is None:
        raise _unknown(model, settings)
    return found


def _on_disk(model: str) -> Resolved | None:
    """A bundled model, or a path."""
    if model in BUNDLED:
        return Resolved(bundled_folder(model), model, "bundled")
    if (file := _gguf_file(model)) is not None:
        return Resolved(file, model, "a file")
    folder = as_folder(model)
    return None if folder is None else Resolved(folder, model, "a folder")


def _by_name(model: str, settings: Settings) -> Resolved | None:
    """A model of the store, the cache or S3."""
    stored = open_store(settings).find(model)
    if stored is not None:
        return Resolved(stored, model, "in the store")
    snapshot = find_snapshot(settings.hf_cache, model)
    if snapshot is not None:
        return Resolved(snapshot.path, model, "in the Hugging Face cache")
    fetched = find_bucket_path(settings.home, model)
    return None if fetched is None else Resolved(fetched, model, "downloaded from S3")


def one_of_several(model: str, settings: Settings) -> Resolved | None:
    """`MODEL:CHOICE`: a GGUF file of a folder or a repository; None if it has none.

    Raises NotFoundError with those that there are.
    """
    whole, _, choice = model.rpartition(":")
    if not whole or not choice or choice.startswith("//"):
        return None
    found = _on_disk(whole) or _by_name(whole, settings)
    models = models_in(found.path) if found is not None and found.path.is_dir() else []
    if found is None or not models:
        return None
    return Resolved(found.path / choose(models, choice, whole).names[0], model, found.origin)


def _gguf_file(text: str) -> Path | None:
    """The existing GGUF file of a path."""
    path = as_path(text)
    return path if path is not None and path.is_file() and (path.suffix == SUFFIX or starts_as_gguf(path)) else None


def _current(current: str, settings: Settings) -> Resolved:
    """The current model as recorded: never a relative folder or a bundled model of the same name."""
    path = _absolute_path(current)
    if path is None and (named := _by_name(current, settings) or one_of_several(current, settings)) is not None:
        path = named.path
    if path is None:
        raise NotFoundError(
            f"{current}: the current model no longer exists.",
            "Name another with --model, such as --model tiny, or list the models: gptfast --list",
        )
    return Resolved(path, current, "current model")


def _absolute_path(text: str) -> Path | None:
    path = Path(text)
    return path if path.is_absolute() and (path.is_dir() or _gguf_file(text) is not None) else None


def _unknown(model: str, settings: Settings) -> NotFoundError:
    fetch = f"Fetch it: gptfast download {shlex.quote(model)}"
    if model.startswith(S3):
        return NotFoundError(f"{model}: not downloaded from S3 yet.", f"{fetch}\nList the models: gptfast --list")
    repo = parse_repo(model)
    is_on_hub = repo is not None and "/" in repo.repo
    if model.startswith((".", "/", "~")) or "\\" in model or (model.count("/") > 1 and not is_on_hub):
        return NotFoundError(f"{model}: there is no such folder.", "List the models: gptfast --list")
    hint = did_you_mean(model, model_names(settings))
    return NotFoundError(
        f"model {model!r} not found (looked in folders, the store and the HF cache).",
        f"{fetch}\n{hint}" if is_on_hub else hint,
    )


def did_you_mean(model: str, names: Iterable[str]) -> str:
    """The models of the nearest names, and the command that lists all: the hint where a model is not found."""
    spelled = {form: name for name in names for form in (name.lower(), name.lower().rpartition("/")[2])}
    wanted = model.lower()
    forms = (wanted, wanted.rpartition("/")[2], wanted.partition(":")[0])
    nearest = next(filter(None, (difflib.get_close_matches(form, spelled) for form in forms)), [])
    meant = " or ".join(dict.fromkeys(spelled[form] for form in nearest))
    return f"{f'Did you mean {meant}? ' if meant else ''}List the models: gptfast --list"
