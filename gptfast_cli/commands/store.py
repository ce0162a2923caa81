"""`gptfast --list`, `--show`, `--use`, `--remove` and `--show-settings`: local models, and where they are."""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import typer

from gptfast_cli.core.checkpoints.inventory import (
    FOLDER,
    Entry,
    Inventory,
    entry_of,
    find_entries,
    remove,
    take_inventory,
)
from gptfast_cli.core.checkpoints.resolve import as_path, resolve
from gptfast_cli.core.checkpoints.store import OTHER_HOME, write_current
from gptfast_cli.core.errors import GptFastError, UsageError
from gptfast_cli.core.files import why_not_writable
from gptfast_cli.core.settings import load_settings, settings_file
from gptfast_cli.options import MODEL_VARIABLE
from gptfast_cli.render.json import Keys, to_document, write_document
from gptfast_cli.render.numbers import count, size
from gptfast_cli.render.terminal import Table, aligned, printable

_HEADINGS = ("", "NAME", "WHERE", "SCHEME", "HEAD", "SIZE", "PARAMETERS", "PATH")
_KEYS: Final[Keys] = {
    Entry: "name current=is_current where scheme head_scheme bytes=n_bytes parameters=n_params path",
    Inventory: "models=entries total_bytes=n_bytes",
}


def list_models(*, json: bool) -> None:
    """Write all models to stdout; a star marks the one that is taken where a command names none."""
    inventory = take_inventory(load_settings())
    if json:
        write_document("gptfast.list/1", inventory, sys.stdout, _KEYS)
        return
    rows = tuple(tuple(map(printable, _row(entry))) for entry in inventory.entries)
    for line in aligned(Table(_HEADINGS, rows, "<<<<<>><")):
        sys.stdout.write(line + "\n")
    sys.stderr.write(f"{len(rows)} models, {size(inventory.n_bytes)} in all\n")
    if not any(entry.is_current for entry in inventory.entries):
        sys.stderr.write(
            f"The current model, {printable(inventory.current)}, does not exist any more: use --model MODEL.\n"
        )
    if named := os.environ.get(MODEL_VARIABLE):
        sys.stderr.write(f"{MODEL_VARIABLE} is set to {printable(named)}, which overrides the current model.\n")


def show_model(model: str, *, json: bool) -> None:
    """Write one model's schemes, size and path to stdout; raises NotFoundError."""
    settings = load_settings()
    inventory, found = take_inventory(settings), resolve(model, settings)
    listed = (entry for entry in inventory.entries if entry.path == found.path)
    entry = next(listed, None) or entry_of(found.name, FOLDER, found.path)
    if json:
        write_document("gptfast.show/1", entry, sys.stdout, _KEYS)
    else:
        _write_pairs(to_document(entry, _KEYS))


def use_model(model: str) -> None:
    """Make a model the current one; raises NotFoundError, and GptFastError where the home cannot be written."""
    settings = load_settings()
    found = resolve(model, settings)
    if (reason := why_not_writable(settings.home)) is not None:
        raise GptFastError(f"{settings.home} cannot be written ({reason}).", OTHER_HOME)
    write_current(settings.home, found.path if as_path(model) else found.name)
    sys.stderr.write(f"Current model: {printable(found.name)}\n")


@dataclass(frozen=True, slots=True)
class _ShownSettings:
    """Folders, `GPTFAST_*` variables, and the settings file's defaults by command and option."""

    home: Path
    hf_cache: Path
    kernel_cache: Path
    settings_file: Path
    environment: Mapping[str, str]
    defaults: Mapping[str, Mapping[str, object]]


def show_settings(defaults: Mapping[str, Mapping[str, object]], *, json: bool) -> None:
    """Write the folders, the environment variables and the settings file's values to stdout.

    defaults: of the settings file, by command and option
    """
    settings = load_settings()
    variables = {name: value for name, value in sorted(os.environ.items()) if name.startswith("GPTFAST_")}
    shown = _ShownSettings(
        settings.home, settings.hf_cache, settings.kernel_cache, settings_file(), variables, defaults
    )
    if json:
        write_document("gptfast.settings/1", shown, sys.stdout)
        return
    own = {f"[{name}] {key}": value for name, options in defaults.items() for key, value in options.items()}
    folders = to_document(shown, {_ShownSettings: "* -environment -defaults"})
    _write_pairs({**folders, **variables, **own})


def _write_pairs(fields: Mapping[str, object]) -> None:
    width = max(map(len, fields))
    for name, value in fields.items():
        sys.stdout.write(f"{name:<{width}}  {printable('' if value is None else str(value))}\n")


def remove_model(name: str, *, yes: bool) -> None:
    """Delete a model, after a `y` to the question whether to, or with `yes`.

    Raises NotFoundError if there is none of this name, UsageError if nobody could be asked, or where it is not
    this program's to remove.
    """
    settings = load_settings()
    entries = find_entries(take_inventory(settings), name)
    if not yes and not sys.stdin.isatty():
        raise UsageError(f"{name} was not removed: no terminal to confirm on.", f"gptfast --remove {name} --yes")
    entry = entries[0]
    is_link = entry.path.is_symlink()
    what = f"the link {entry.path}" if is_link else f"{size(sum(each.n_bytes for each in entries))} in {entry.path}"
    others = f" and {len(entries) - 1} more revisions" if len(entries) > 1 else ""
    if yes or typer.confirm(f"Remove {entry.name} ({what}{others})?", err=True):
        remove(entries, settings)
        sys.stderr.write(f"Removed {entry.name}{others}.\n")
    else:
        sys.stderr.write(f"Kept {entry.name}.\n")


def _row(entry: Entry) -> tuple[str, ...]:
    return (
        "*" if entry.is_current else "",
        entry.name,
        entry.where,
        entry.scheme or "",
        entry.head_scheme or "",
        size(entry.n_bytes),
        "" if entry.n_params is None else count(entry.n_params),
        str(entry.path),
    )
